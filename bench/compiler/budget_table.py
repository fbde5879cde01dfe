"""Tables of the instruction budget of every kernel's main loop on an H100, and of the rate that it predicts.

    python -m bench.compiler.budget_table              # from the committed rows: print and write the tables
    python -m bench.compiler.budget_table ROWS.jsonl   # print the tables of other rows; - for standard input

``python -m bench.compiler`` counts the instructions and writes these tables too. To compare candidates for a tile:

    python -m bench.compiler attention --case ' dq-joint D 64 bf16 sm_90$' --tile 128,64,8,3 --tile 64,64,4,3 \\
        | python -m bench.compiler.budget_table -
"""

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from bench.compiler import budget
from bench.harness.rows import RESULTS, read
from bench.report import markdown

ROWS = RESULTS / "compile_report.jsonl"
TABLE = RESULTS / "instruction_budget.md"
_HOPPER = re.compile(r"\bG?H[12]00\b")
_PIPES = ("tensor", "shared", "L2", "HBM", *budget.PIPES)
_TEXT = ("family", "case", "part", "tile", "bound")
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}

_HEAD = f"""\
Made by `python -m bench.compiler` without a GPU; `python -m bench.compiler.budget_table` makes it from the rows again.

**This is a model, not a measurement.** The machine code of each kernel for sm_90 is disassembled and one iteration of
its main loop is counted: the innermost loop with the most tensor-core FLOPs, and of two such loops the one without a
mask. Without tensor-core instructions it is the loop with the most global bytes, or the whole kernel if it has no loop.
Published rates give the cycles that each pipe of an SM needs for one CTA; the largest number is the predicted bound.

* An H100 SXM with {budget.SMS} SMs at {budget.CLOCK / 1e9} GHz, the clock of its data sheet's \
{budget.TENSOR_PEAK / 1e12:.0f} TFLOP/s; it is lower under full load.
  HBM: {budget.HBM / 1e12} TB/s. L2: {budget.L2:.0f} bytes per clock and SM, A100's published rate. \
Rates and sources: `bench/compiler/budget.py`.
* Pipes overlap perfectly: no latency, no barriers, no wait for a GEMM. With one CTA per SM this is far from true, so
  the rates are upper bounds: use them to compare tiles, not as forecasts.
* No bank conflicts. wgmma reads its operands from shared memory and needs 64 columns to keep the tensor cores busy;
  fewer columns show as a bound by shared memory. Spilled registers use the same port.
* Loads of a loop with GEMMs come from L2 and miss L1; loads of a loop without come from HBM.
* Steady state: no prologue, no partial wave of CTAs, no other kernel. Both sides of a branch count. TFLOP/s count the
  equations' FLOPs only. Padding of the head dim, the repeated GEMMs of TF32x3 and those that warps of a small tile
  repeat are issued, but not useful.
* CTAs: the number that fit an SM by registers, shared memory and warps. spills: LDL and STL instructions in the whole
  kernel; here: those in the counted part.
"""


def report(rows: Iterable[dict[str, Any]], device_rows: Sequence[dict[str, Any]] = ()) -> str:
    """Return the tables of the rows that have a budget, with measured rates beside the predicted ones."""
    budgets = [row for row in rows if "budget" in row]
    tensor = [row for row in budgets if row["budget"]["tensor_op"]]
    other = [row for row in budgets if not row["budget"]["tensor_op"]]
    lines = [_HEAD, "## Cycles per iteration, kernels with tensor-core instructions", ""]
    lines += _predictions(tensor, "TFLOP/s", device_rows)
    lines += ["", "## Cycles per iteration, other kernels", "", *_predictions(other, "GB/s", device_rows)]
    lines += ["", "## Warp instructions of a CTA per iteration", "", *_counts(budgets)]
    return "\n".join(lines) + "\n"


def measured(row: dict[str, Any], device_rows: Iterable[dict[str, Any]]) -> float | None:
    """Return the TFLOP/s of an attention kernel timed on a Hopper GPU in the row's direction, head dim, dtype and tile.

    device_rows: as ``bench.harness.rows.read`` returns them; the tuner writes one with a ``config`` for each candidate.
    The longest sequence counts, and the fastest of its rows; None without a row.
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
    pipes = [pipe for pipe in _PIPES if any(pipe in budget.predict(row["budget"]).cycles for row in rows)]
    heads = ["family", "case", "part", "tile", "warps", "stages", "registers", "spills", "here", "CTAs"]
    lines = []
    for row in rows:
        counts, prediction = row["budget"], budget.predict(row["budget"])
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
    return markdown.table([*heads, *pipes, "bound", unit, "of the roof", "measured"], lines, _TEXT)


def _counts(rows: Sequence[dict[str, Any]]) -> list[str]:
    classes = [name for name in budget.CLASSES if name != "tensor"]
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
    return markdown.table([*heads, *(f"{name.removesuffix('_bytes')} KB" for name in moved)], lines, _TEXT)


def _tile(counts: dict[str, Any]) -> str:
    return "×".join(str(counts[name]) for name in ("block_m", "block_n") if name in counts) or "–"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="?", help="JSON lines of python -m bench.compiler; - for standard input")
    args = parser.parse_args()
    if args.rows is None:
        tables = report(map(json.loads, ROWS.read_text().splitlines()), read())
        TABLE.write_text(tables, encoding="utf-8")
        print(tables)
    else:
        with sys.stdin if args.rows == "-" else open(args.rows) as lines:
            print(report(map(json.loads, lines), read()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
