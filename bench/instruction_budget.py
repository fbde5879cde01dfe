"""The instruction budget of every kernel's main loop on an H100, and what it predicts: tables of ``bench/_budget.py``.

    python -m bench.instruction_budget              # from the committed rows: print the tables, write them
    python -m bench.instruction_budget ROWS.jsonl   # print the tables of other rows; - for standard input

``python -m bench.compile_report`` counts, and ends with this. Candidates for a tile compare as

    python -m bench.compile_report attention --case ' dq-joint D 64 bf16 sm_90$' --tile 128,64,8,3 --tile 64,64,4,3 \\
        | python -m bench.instruction_budget -
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from bench import _budget, _rows

ROWS = _rows.RESULTS / "compile_report.jsonl"
TABLE = _rows.RESULTS / "instruction_budget.md"
_HOPPER = re.compile(r"\bG?H[12]00\b")
_PIPES = ("tensor", "shared", "L2", "HBM", *_budget.PIPES)
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

_HEAD = f"""\
Made by `python -m bench.compile_report`, or from its rows by `python -m bench.instruction_budget`, no GPU involved.

**This is a model, not a measurement.** The machine code of each kernel for sm_90 is disassembled and one iteration of
its main loop counted: the innermost loop with the most tensor-core FLOPs, of two such the one that masks nothing.
Kernels without tensor-core instructions count the loop with the most global bytes, or all of the kernel where there is
no loop. The cycles that each pipe of an SM needs for what one CTA issues follow from published rates; the largest is
the predicted bound.

* An H100 SXM, {_budget.SMS} SMs at the clock of its data sheet's {_budget.TENSOR_PEAK / 1e12:.0f} TFLOP/s, \
{_budget.CLOCK / 1e9} GHz; under full load it is
  lower. HBM: {_budget.HBM / 1e12} TB/s. L2: {_budget.L2:.0f} bytes a clock and SM, A100's published rate. \
Rates and sources are in
  `bench/_budget.py`.
* Every pipe overlaps perfectly with every other: no latency, no barrier, no wait for a product. With one CTA an SM that
  is far from true. The rates are ceilings: compare tiles by them, do not expect them.
* No bank conflicts. wgmma reads its operands from shared memory: it takes 64 columns to keep the tensor cores busy, and
  fewer show as a bound by shared memory. Spilled registers pass the same port.
* All that a loop with products loads hits L2 and misses L1; what one without loads comes from HBM.
* A steady state: no prologue, no partial wave of CTAs, no other kernel. Both sides of a branch count. TFLOP/s are the
  mathematics' own; the padding of a head dim, the repeated products of TF32x3 and those that several warps of a small
  tile have in common are issued and not useful.
* CTAs: how many fit an SM by registers, shared memory and warps. spills: LDL and STL instructions in the whole kernel;
  here: those among what is counted.
"""


def report(rows: Iterable[dict[str, Any]], device_rows: Sequence[dict[str, Any]] = ()) -> str:
    """The tables of the compile report's rows that have a budget, with measured rows beside their predictions."""
    budgets = [row for row in rows if "budget" in row]
    tensor = [row for row in budgets if row["budget"]["tensor_op"]]
    other = [row for row in budgets if not row["budget"]["tensor_op"]]
    lines = [_HEAD, "## Cycles an iteration, kernels with tensor-core instructions", ""]
    lines += _predictions(tensor, "TFLOP/s", device_rows)
    lines += ["", "## Cycles an iteration, the others", "", *_predictions(other, "GB/s", device_rows)]
    lines += ["", "## Warp instructions of a CTA an iteration", "", *_counts(budgets)]
    return "\n".join(lines) + "\n"


def measured(row: dict[str, Any], device_rows: Iterable[dict[str, Any]]) -> float | None:
    """TFLOP/s of an attention kernel timed on a Hopper GPU in the row's direction, head dim, dtype and tile.

    device_rows: as ``bench/_rows.py`` reads them; ``bench/tune.py`` writes one with its ``config`` for every kernel. Of
    several the longest sequence counts, and of those the fastest; None without one.
    """
    direction, _, head_dim, dtype, *notes = row["case"].split()
    if row["family"] != "attention" or notes:
        return None
    tile = {"block_m": row["budget"]["block_m"], "block_n": row["budget"]["block_n"]}
    tile |= {"num_warps": row["warps"], "num_stages": row["stages"]}
    if direction == "forward-many":
        tile["tangents"] = row["budget"]["tangents"]
    found = [
        (x["shape"][2], x["tflops"])
        for x in device_rows
        if (x["op"], x["implementation"], x["mode"]) == ("attention", "fastflow kernel", direction)
        and (x["shape"][3], x["dtype"]) == (int(head_dim), _DTYPES[dtype])
        and _HOPPER.search(x["device"])
        and tile.items() <= (x.get("config") or {}).items()
    ]
    return max(found)[1] if found else None


def _predictions(rows: Sequence[dict[str, Any]], unit: str, device_rows: Sequence[dict[str, Any]]) -> list[str]:
    pipes = [pipe for pipe in _PIPES if any(pipe in _budget.predict(row["budget"]).cycles for row in rows)]
    heads = ["family", "case", "part", "tile", "warps", "stages", "registers", "spills", "here", "CTAs"]
    lines = []
    for row in rows:
        counts, prediction = row["budget"], _budget.predict(row["budget"])
        found = measured(row, device_rows) if "block_n" in counts else None
        lines.append(
            [
                *(row["family"], row["case"], counts["part"], _tile(counts), row["warps"], row["stages"]),
                *(row["registers"], row["spills"], counts["local"] // row["warps"], counts["ctas"]),
                *(f"{prediction.cycles[pipe]:.0f}" for pipe in pipes),
                *(prediction.bound, f"{prediction.rate:.0f}", f"{prediction.share:.0%}"),
                "–" if found is None else f"{found:.0f}",
            ]
        )
    return _markdown([*heads, *pipes, "bound", unit, "of the roof", "measured"], lines)


def _counts(rows: Sequence[dict[str, Any]]) -> list[str]:
    classes = [name for name in _budget.CLASSES if name != "tensor"]
    moved = ("operand_bytes", "shared_bytes", "global_bytes", "local_bytes")
    heads = ["family", "case", "MFLOPs", "useful", "tensor", *classes, "other", "issued"]
    lines = []
    for row in rows:
        counts = row["budget"]
        numbers = [counts[name] for name in ("tensor", *classes, "other", "issued")]
        kilobytes = [f"{counts[name] / 1024:.0f}" for name in moved]
        useful = f"{counts['math_flops'] / counts['tensor_flops']:.0%}" if counts["tensor_op"] else "–"
        megaflops = f"{counts['tensor_flops'] / 1e6:.1f}"
        lines.append([row["family"], row["case"], megaflops, useful, *numbers, *kilobytes])
    return _markdown([*heads, *(f"{name.removesuffix('_bytes')} KB" for name in moved)], lines)


def _tile(counts: dict[str, Any]) -> str:
    return "×".join(str(counts[name]) for name in ("block_m", "block_n") if name in counts) or "–"


def _markdown(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> list[str]:
    rule = ["---" if head in ("family", "case", "part", "tile", "bound") else "--:" for head in heads]
    return [f"| {' | '.join(map(str, cells))} |" for cells in (heads, rule, *lines)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", help="JSON lines of bench.compile_report; - for standard input")
    args = parser.parse_args()
    if args.rows is None:
        tables = report(map(json.loads, ROWS.read_text().splitlines()), _rows.read())
        TABLE.write_text(tables, encoding="utf-8")
        print(tables)
    else:
        with sys.stdin if args.rows == "-" else open(args.rows) as lines:
            print(report(map(json.loads, lines), _rows.read()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
