"""The page ``docs/derivatives.md``. ``python -m tests.ops.replace.table`` writes it anew."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from fastflow import replace_ops
from tests.ops.replace.central_differences import MODES, RAISES, RIGHT, WRONG, judge
from tests.ops.replace.torch_ops import OPS

PAGE = Path(__file__).parents[3] / "docs" / "derivatives.md"
Row = tuple[str, Sequence[str], Sequence[str]]  # the op, its verdicts in PyTorch and inside replace_ops

HEAD = """# Derivatives of PyTorch's ops

Objectives such as MeanFlow differentiate a model's tangent, and some of PyTorch's derivative formulas are wrong there.
This page judges {num} ops that models contain by central differences in float64, on PyTorch {version}.
`fastflow.replace_ops()` replaces every op of the first table, and attention; the others run unchanged.

Each column is a mode: the gradient; the tangent (`jvp`); the gradient of the tangent, with respect to inputs, weights
and tangents, by `torch.func` and by a bare `forward_ad.dual_level`; the tangent of the gradient (`jvp(grad)`); the
gradient of the gradient; gradient and tangent of `vmap(vjp)`.

To judge them again: `python -m tests.ops.replace.table`.
"""
WRONG_HEAD = """
## Wrong in PyTorch

**wrong** is wrong without a message. An arrow shows what `replace_ops` makes of it.
"""
RAISES_HEAD = """
## Not implemented somewhere

`raises` is an error of PyTorch's, in the modes where it says so; the other modes are right.
"""
RIGHT_HEAD = """
## Right in every mode
"""


def verdicts(name: str, *, replaced: bool) -> list[str]:
    function, inputs = OPS[name]
    with replace_ops() if replaced else nullcontext():
        return [judge(function, inputs, mode) for mode in MODES]


def rows(names: Sequence[str]) -> list[Row]:
    return [(name, verdicts(name, replaced=False), verdicts(name, replaced=True)) for name in names]


def page(table: Sequence[Row]) -> str:
    wrong = [row for row in table if WRONG in row[1]]
    raising = [row for row in table if WRONG not in row[1] and RAISES in row[1]]
    right = [row[0] for row in table if set(row[1]) == {RIGHT}]
    return "".join(
        [
            HEAD.format(num=len(table), version=".".join(torch.__version__.split(".")[:2])),
            *(WRONG_HEAD, _table(wrong), RAISES_HEAD, _table(raising), RIGHT_HEAD, "\n"),
            *(", ".join(f"`{name}`" for name in right), ".\n"),
        ]
    )


def _table(table: Sequence[Row]) -> str:
    lines = [["op", *MODES], ["---"] * (1 + len(MODES))]
    lines += [[f"`{name}`", *map(_cell, before, after)] for name, before, after in table]
    return "\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(before: str, after: str) -> str:
    before = f"**{before}**" if before == WRONG else before
    return before if before == after else f"{before} → {after}"


def written() -> dict[str, tuple[list[str], list[str]]]:
    """Return the verdicts that the page states, by op."""
    found = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| `"):
            name, *cells = line.strip("| ").split(" | ")
            parts = [cell.replace("*", "").split(" → ") for cell in cells]
            found[name.strip("`")] = [p[0] for p in parts], [p[-1] for p in parts]
    listed = PAGE.read_text().partition(RIGHT_HEAD)[2].strip().rstrip(".")
    always = [RIGHT] * len(MODES)
    return found | {name.strip("`"): (always, always) for name in listed.split("`, `")}


if __name__ == "__main__":
    PAGE.write_text(page(rows(list(OPS))))
