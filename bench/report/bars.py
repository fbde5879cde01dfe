"""The limits that whole steps and divergences are held to on a CPU, beside the recorded ratios."""

import operator
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bench.harness.case import PLAIN_STEP
from bench.harness.rows import Row
from bench.report import markdown
from bench.report.markdown import decimals
from bench.report.table import Table, is_gpu

_HEAD = ("bar", "measured", "limit", "met")
_DIGITS, _SMALL = "digits DiT", "DiT-S/2"


class Bar(NamedTuple):
    """measured: None without its rows. at_most: whether the limit is an upper one."""

    name: str
    measured: float | None
    limit: float
    at_most: bool

    @property
    def is_met(self) -> bool:
        holds = operator.le if self.at_most else operator.ge
        return self.measured is not None and holds(self.measured, self.limit)


def bars(table: Table) -> list[Bar]:
    """Return the bars of a CPU; none of a GPU, where nobody has set them yet."""
    if is_gpu(table.device):
        return []
    return [*_steps(table), *_plain_steps(table), *_divergences(table)]


def section(table: Table) -> list[str]:
    """Return the page's section as Markdown lines, none without a measured bar."""
    found = bars(table)
    if all(bar.measured is None for bar in found):
        return []
    body = [
        (
            bar.name,
            decimals(bar.measured),
            f"{'≤' if bar.at_most else '≥'} {bar.limit:.2f}",
            "yes" if bar.is_met else "no",
        )
        for bar in found
    ]
    return ["## Bars", "", *markdown.table(_HEAD, body, ("bar", "limit", "met")), ""]


def _steps(table: Table) -> Iterator[Bar]:
    tangent = [(_SMALL, "tangent", 1, 1.4), (_SMALL, "tangent", 4, 1.4), (_DIGITS, "tangent", 32, 1.15)]
    for model, loss, batch, limit in (*tangent, (_SMALL, "MeanFlow", 1, 1.2)):
        ways = _ways(table, "training step", f"{model}, {loss}", batch)
        name = f"{model}, {loss} loss, batch {batch}"
        yield Bar(f"{name}: times as fast as PyTorch", _over(ways, "PyTorch", "fastflow"), limit, False)
        if (model, loss) == (_SMALL, "tangent"):
            yield Bar(f"{name}: peak memory", _over(ways, "fastflow", "PyTorch", "peak_mb"), 0.6, True)
            yield Bar(f"{name}: over the plain step", _over(ways, "fastflow", PLAIN_STEP), 2.4, True)


def _plain_steps(table: Table) -> Iterator[Bar]:
    for model, batch in ((_SMALL, 1), (_DIGITS, 32)):
        ways = _ways(table, "training step", f"{model}, CFM", batch)
        again = _over(ways, "PyTorch again", "PyTorch") or 1.0
        noise = max(again, 1 / again)
        name = f"{model}, CFM loss, batch {batch}: time over PyTorch's, the limit being two runs of PyTorch"
        yield Bar(name, _over(ways, "fastflow", "PyTorch"), noise, True)


def _divergences(table: Table) -> Iterator[Bar]:
    sixteen, exact = (_ways(table, "divergence", f"{_DIGITS}, {kind}", 32) for kind in ("16 probes", "exact"))
    forward = _over(sixteen, "fastflow forward", "forward, PyTorch's ops")
    yield Bar("16 probes, forward mode: time over PyTorch's ops", forward, 0.75, True)
    for num, ways, loop, limit in (
        (16, sixteen, "16 VJPs", 0.5),
        (16, sixteen, "16 VJPs, one graph", 0.8),
        (64, exact, "64 VJPs, one graph", 0.9),
    ):
        best = min((t for mode in ("forward", "reverse") if (t := _over(ways, f"fastflow {mode}", loop))), default=None)
        yield Bar(f"{num} products, best mode: time over {loop}", best, limit, True)


def _ways(table: Table, op: str, mode: str, batch: int) -> dict[str, Row]:
    rows = (
        r for r in table.rows if (r["op"], r["mode"], r["shape"][0]) == (op, mode, batch) and r["launch"] == "eager"
    )
    return {row["implementation"]: row for row in rows}


def _over(ways: dict[str, Row], one: str, other: str, field: str = "ms") -> float | None:
    return ways[one][field] / ways[other][field] if one in ways and other in ways else None


def unmet(found: Sequence[Bar]) -> list[str]:
    """Return the bars that are not met, or not measured, each as a sentence."""
    return [
        f"{bar.name}: {decimals(bar.measured)}, must be at {'most' if bar.at_most else 'least'} {bar.limit:.2f}"
        for bar in found
        if not bar.is_met
    ]
