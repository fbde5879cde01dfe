"""Whether the kernels are right on this GPU, in one command: ``python -m bench.gpu_check``.

The ops' tests on the real kernels, error budgets in every dtype, every shipped tuning configuration, bit-equal repeats,
memory outside the outputs and beyond 32-bit offsets, compute-sanitizer, then the benchmarks, for as long as --minutes
allow. Each part's row is appended to bench/results/<device>.jsonl as soon as it is done, and the page is made anew: it
may be stopped at any time. Without a GPU only ``--dry-run`` makes sense: the same code, tiny, in the interpreter.
"""

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Sequence

import torch

from bench import _gpu_part, _rows
from bench._gpu_part import Part, Setting
from bench._table import markdown

PARTS = (
    Part("op tests", "bench._gpu_suites", parallel=True),
    Part("dtype budgets", "bench._gpu_numbers", parallel=True),
    Part("configurations", "bench._gpu_numbers", parallel=True),
    Part("guard zones", "bench._gpu_memory", parallel=True),
    Part("same bits", "bench._gpu_numbers", parallel=True),
    Part("compiled tests", "bench._gpu_suites", parallel=True),
    Part("tuning candidates", "bench._gpu_numbers", parallel=True),
    Part("far views", "bench._gpu_memory"),
    Part("sanitizer", "bench._gpu_memory"),
    Part("benches", "bench._gpu_suites"),
)
_MOST_WORKERS = 12  # each holds a context of the GPU


def check_lines(device: str) -> list[str]:
    """The page's section on correctness: the newest row of every part, as Markdown; empty where there is none."""
    path = _rows.path_of(device)
    lines = path.read_text().splitlines() if path.exists() else []
    newest = {row["check"]: row for row in map(json.loads, lines) if "check" in row}
    rows = [newest[part.name] for part in PARTS if part.name in newest]
    if not rows:
        return []
    head = ("part", "verdict", "tried", "faults", "s", "worst", "commit", "date")
    cells = [[str(r[name]) for name in ("check", "verdict", "tried", "faults", "seconds", *head[5:])] for r in rows]
    remarks = [f"- {r['check']}: {remark}" for r in rows for remark in r["remarks"]]
    return [
        "## Correctness",
        "",
        f"`make gpu-check` with torch {rows[-1]['torch']}, triton {rows[-1]['triton']}, driver {rows[-1]['driver']}. "
        "Worst: the largest share of an error that is allowed.",
        "",
        *markdown(head, cells, slice(2, 5)),
        *(["", *remarks] if remarks else []),
    ]


def check(parts: Sequence[Part], setting: Setting, record: bool) -> bool:
    """Run the parts, those for which workers are kept first; whether none of them found a fault."""
    together = [part for part in parts if part.parallel]
    with _gpu_part.workers(setting) as pool:
        rows = _run(together, setting, record, pool)
    if len(rows) == len(together):
        rows += _run([part for part in parts if not part.parallel], setting, record, None)
    return not any(row["verdict"] == _gpu_part.FAIL for row in rows)


def _run(
    parts: Sequence[Part], setting: Setting, record: bool, pool: _gpu_part.Workers | None
) -> list[_rows.Row]:  # fmt: skip
    rows = []
    for part in parts:
        row = _gpu_part.run(part, setting, pool)
        rows.append(row)
        _show(row)
        begun = row["tried"] or row["verdict"] != _gpu_part.STOPPED
        if record and begun:
            _rows.append([row])
            _write_page(row["device"])
        if "interrupted" in row["remarks"]:
            break
    return rows


def _show(row: _rows.Row) -> None:
    print(f"{row['check']:<18} {row['verdict']:<8} {row['tried']:5d} tried {row['seconds']:7.1f} s  {row['worst']}")
    for remark in row["remarks"]:
        print(f"    {remark}")
    sys.stdout.flush()


def _write_page(device: str) -> None:
    """The device's page as far as it goes; what is wrong with a page must not end the check."""
    from bench.report import texts  # which asks this module for its lines

    path = _rows.path_of(device).with_suffix(".md")
    try:
        path.write_text(texts().get(path) or "\n".join([f"# {device}", "", *check_lines(device), ""]))
    except Exception as error:
        print(f"no page: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="stop after this many (10)")
    parser.add_argument("--only", action="append", choices=names, help="a part to run, may be repeated")
    parser.add_argument("--workers", type=int, help="processes that compile and check at a time")
    parser.add_argument("--no-record", action="store_true", help="write nothing")
    parser.add_argument(
        "--dry-run", action="store_true", help="tiny, and record nothing: on the CPU in the interpreter"
    )
    args = parser.parse_args(arguments)

    cuda = torch.cuda.is_available()
    if not cuda and not args.dry_run:
        parser.error("there is no GPU: only --dry-run is possible")
    default = 1 if args.dry_run else max(1, min(_MOST_WORKERS, (os.cpu_count() or 1) - 2))
    setting = Setting(
        device=torch.device("cuda" if cuda else "cpu"),
        dry=args.dry_run,
        deadline=time.monotonic() + 60 * args.minutes,
        workers=args.workers or default,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parts = [part for part in PARTS if args.only is None or part.name in args.only]
    return 0 if check(parts, setting, record=not (args.dry_run or args.no_record)) else 1


if __name__ == "__main__":
    sys.exit(main())
