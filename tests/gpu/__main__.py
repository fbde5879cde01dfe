"""Check the kernels on this GPU: ``python -m tests.gpu``.

Runs the tests of the ops on the real kernels, error budgets in every dtype, every shipped tuning configuration, repeats
that must be bit-equal, guard zones, offsets beyond 32 bits, compute-sanitizer and the benchmarks, until --minutes are
over. Each part appends its row to bench/results/<device>.jsonl and updates the page as soon as it is done, so the check
can be stopped at any time. Without a GPU use ``--dry-run``: the same code on tiny inputs in the interpreter.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence

import torch

from bench.harness import rows
from bench.harness.checks import Setting, Workers, workers
from bench.harness.interpreter import language_patched_once
from bench.report import build
from tests.gpu import parts
from tests.gpu.parts import Part

PARTS = (
    Part("op tests", "tests.gpu.suites", parallel=True),
    Part("dtype budgets", "tests.gpu.numbers", parallel=True),
    Part("configurations", "tests.gpu.numbers", parallel=True),
    Part("guard zones", "tests.gpu.memory", parallel=True),
    Part("same bits", "tests.gpu.numbers", parallel=True),
    Part("compiled tests", "tests.gpu.suites", parallel=True),
    Part("tuning candidates", "tests.gpu.numbers", parallel=True),
    Part("far views", "tests.gpu.memory"),
    Part("sanitizer", "tests.gpu.memory"),
    Part("benches", "tests.gpu.suites"),
)
_MOST_WORKERS = 12  # each holds a CUDA context


def check(chosen: Sequence[Part], setting: Setting, record: bool) -> bool:
    """Run the parts, those with worker processes first; return True if none found a fault."""
    together = [part for part in chosen if part.parallel]
    with workers(setting) as pool:
        done = _run(together, setting, record, pool)
    if len(done) == len(together):
        done += _run([part for part in chosen if not part.parallel], setting, record, None)
    return not any(row["verdict"] == parts.FAIL for row in done)


def _run(chosen: Sequence[Part], setting: Setting, record: bool, pool: Workers | None) -> list[rows.Row]:
    done = []
    for part in chosen:
        row = parts.run(part, setting, pool)
        done.append(row)
        _show(row)
        begun = row["tried"] or row["verdict"] != parts.STOPPED
        if record and begun:
            rows.append([row])
            _write_page(row["device"])
        if "interrupted" in row["remarks"]:
            break
    return done


def _show(row: rows.Row) -> None:
    print(f"{row['check']:<18} {row['verdict']:<8} {row['tried']:5d} tried {row['seconds']:7.1f} s  {row['worst']}")
    for remark in row["remarks"]:
        print(f"    {remark}")
    sys.stdout.flush()


def _write_page(device: str) -> None:
    """Write the device's page; an error in a page must not end the check."""
    try:
        build.write_page(device)
    except Exception as error:
        print(f"no page: {error}")


def main(arguments: Sequence[str] | None = None) -> int:
    names = [part.name for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="time limit (10)")
    parser.add_argument("--only", action="append", choices=names, help="run this part only; may be repeated")
    parser.add_argument("--workers", type=int, help="worker processes")
    parser.add_argument("--no-record", action="store_true", help="write nothing")
    parser.add_argument("--dry-run", action="store_true", help="tiny inputs, nothing recorded; works on a CPU")
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
    chosen = [part for part in PARTS if args.only is None or part.name in args.only]
    with language_patched_once():
        return 0 if check(chosen, setting, record=not (args.dry_run or args.no_record)) else 1


if __name__ == "__main__":
    sys.exit(main())
