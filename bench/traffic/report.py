"""The report on memory traffic: bytes beside the floor, the bandwidth that they predict, launches of a DiT block."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

from bench.compiler.budget_table import ROWS as COMPILED
from bench.compiler.report import cases
from bench.harness.rows import RESULTS
from bench.report import markdown
from bench.traffic import predict

ROWS = RESULTS / "memory_traffic.jsonl"
TABLE = ROWS.with_suffix(".md")
Row = dict[str, Any]
# the compile cases of the joint forward and backward at DiT-XL/2's width, 1,152, or head dim, 72
_CASES = {
    "layer norm, modulated": ("forward modulated dual D 1152 bf16", "backward modulated dual D 1152 bf16"),
    "RMS norm": ("forward rms dual D 1152 bf16", "backward rms dual D 1152 bf16"),
    "gated add": ("add 64 x 64 dual bf16", "add backward 64 x 64 dual bf16"),
    "gated add + layer norm": ("norm dual D 1152 bf16", "norm backward dual D 1152 bf16"),
    "GELU": ("forward gelu_tanh bf16", "joint backward gelu_tanh bf16"),
    "SiLU": ("forward silu bf16", "joint backward silu bf16"),
    "SwiGLU": ("gated forward silu bf16", "gated joint backward silu bf16"),
    "RoPE": ("joint D 72 halves bf16", "joint D 72 halves bf16"),
}
MOST_MOVED = 1.05  # times the floor
LEAST_SHARE = 0.85  # of the bandwidth

_MOVED = """\
Made by `python -m bench.traffic` without a GPU.

## Bytes of the block ops

Triton's interpreter runs the kernels, and their masked loads and stores are counted. A byte that a launch loads twice
counts once in *moved*, since the second load hits a cache, and twice in *requested*; these are the vectors of a sample
(shift, scale, gate), which every token reads. *Reloads*: how often a tensor of tokens is loaded, which must be 1.
Kernels of PyTorch that run beside count with their inputs and outputs. *Floor*: each operand, tangent and cotangent
once, each result once, in 16-bit numbers. Shapes: DiT-XL/2 with 32 images at an eighth of its width, and one image for
elementwise ops; bytes are per token and channel.
"""

_PREDICTED = f"""\
## Predicted share of the bandwidth

**A model, not a measurement**: `bench/traffic/predict.py` says what it assumes. DiT-XL/2's width of 1,152 in bf16 on an
H100: {predict.HBM / 1e12} TB/s, {predict.IN_FLIGHT >> 10} KiB in flight on each of {predict.SMS} SMs for all of it,
blocks per SM and instructions from the compile report. In flight: bytes of the resident blocks' loads.
"""

_LAUNCHES = """\
## Launches of a DiT block

Kernels that one more block adds to `torch.func.jvp` of a DiT in input and time, and to the backward of output and
tangent. PyTorch: the same model on PyTorch's own ops and math attention. Views and allocations do not count.
"""


def recorded() -> list[Row]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def faults(rows: Sequence[Row]) -> list[str]:
    """Return the limits that the rows break, each as a sentence."""
    counted = [row for row in rows if "floor" in row]
    found = []
    for row in counted:
        title, ratio = f"{row['op']}, {row['pass']}", row["moved"] / row["floor"]
        if ratio > MOST_MOVED:
            found.append(f"{title}: moves {ratio:.3f} times the floor, the limit is {MOST_MOVED}")
        if row["reloads"] > MOST_MOVED:
            found.append(f"{title}: loads a tensor of tokens {row['reloads']} times")
    for row, kernel, _, predicted in predictions(counted):
        if predicted.share < LEAST_SHARE:
            title = f"{row['op']}, {row['pass']}, {kernel['kernel']}"
            found.append(f"{title}: predicted {predicted.share:.0%} of the bandwidth, the limit is {LEAST_SHARE:.0%}")
    return found


def text(rows: Sequence[Row]) -> str:
    """Return the report as Markdown. rows: of ``moved.py`` and ``launches.py``."""
    counted, launches = ([row for row in rows if key in row] for key in ("floor", "way"))
    lines = [_MOVED, *_moved(counted), "", _PREDICTED, *_predicted(counted), "", _LAUNCHES, *_launches(launches)]
    return "\n".join(lines) + "\n"


def _moved(rows: Sequence[Row]) -> list[str]:
    head = ("op", "pass", "launches", "floor", "moved", "requested", "moved / floor", "reloads", "PyTorch's kernels")
    body = []
    for row in rows:
        elements = row["tokens"] * row["channels"]
        numbers = (f"{row[name] / elements:.2f}" for name in ("floor", "moved", "requested"))
        others = ", ".join(row["others"]) or "–"
        ratio = f"{row['moved'] / row['floor']:.3f}"
        body.append((row["op"], row["pass"], row["launches"], *numbers, ratio, row["reloads"], others))
    return markdown.table(head, body, ("op", "pass", "PyTorch's kernels"))


def predictions(rows: Sequence[Row]) -> Iterator[tuple[Row, Row, Row, predict.Bandwidth]]:
    """Yield the counted row, the kernel, its compile row and the prediction, of the kernels that move most bytes."""
    compiled = {
        (r["family"], r["case"]): r for r in map(json.loads, COMPILED.read_text().splitlines()) if "budget" in r
    }
    for row in rows:
        kernel = max(row["kernels"], key=lambda k: k["loaded"] + k["stored"])
        every = cases(row["family"])
        stages = {case.name: case.constants.get("STAGES", 1) for case in every}
        case = (row["family"], _CASES.get(row["op"], ("", ""))[row["pass"] == "joint backward"])
        if case in compiled:
            found, share = compiled[case], row["floor"] / row["moved"]
            yield row, kernel, found, predict.bandwidth(kernel, found["budget"], share, stages[found["case"]])


def _predicted(rows: Sequence[Row]) -> list[str]:
    head = ("op", "pass", "kernel", "registers", "warps", "CTAs", "in flight KiB", "bound", "predicted share")
    body = [
        (
            *(row["op"], row["pass"], compiled["case"], compiled["registers"], compiled["warps"], found.ctas),
            *(f"{found.in_flight / 1024:.0f}", found.bound, f"{found.share:.0%}"),
        )
        for row, _, compiled, found in predictions(rows)
    ]
    return markdown.table(head, body, ("op", "pass", "kernel", "bound"))


def _launches(rows: Sequence[Row]) -> list[str]:
    head = ("ops", "pass", "launches", "Triton kernels", "GEMMs", "others")
    body = [
        (
            *(r[name] for name in ("way", "pass", "launches", "triton", "gemms")),
            r["launches"] - r["triton"] - r["gemms"],
        )
        for r in rows
    ]
    return markdown.table(head, body, head[:2])
