"""Pictures of a device: bars of time against baselines, and time and memory against N."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.harness.case import is_own
from bench.harness.rows import Row
from bench.report.markdown import number
from bench.report.table import Curve, Line, Table
from fastflow.train.style import INK, add_grid, new_figure, style_axes

OWN, OWN_OTHER, BASELINE, OTHER = "#0072b2", "#7fc4e8", "#8a8f98", "#d99a2b"  # distinguishable by colour-blind readers
UNITS = {"ms": "time in ms", "peak_mb": "peak memory in MiB"}


def draw(table: Table, stem: Path) -> list[Path]:
    """Write ``<stem>-bars.png`` and ``<stem>-scaling.png`` if there are rows for them; return the files written."""
    drawn = []
    for name, items, make in (("bars", _cases(table), _bars), ("scaling", table.curves(), _scaling)):
        if items:
            drawn.append(stem.with_name(f"{stem.name}-{name}.png"))
            make(items, table.device).savefig(drawn[-1])
    return drawn


def _cases(table: Table) -> list[tuple[Line, list[Row]]]:
    """Return the labelled cases, each with its first measured baseline and the rows of all of its ways."""
    lines: dict[str, Line] = {}
    for line in table.lines():
        lines.setdefault(line.label, line)
    return [(line, table.ways(line.own)) for line in lines.values()]


def _bars(cases: Sequence[tuple[Line, Sequence[Row]]], device: str) -> Any:
    figure = new_figure(8.0, 0.8 + sum(0.17 * len(rows) + 0.12 for _, rows in cases))
    axes = figure.add_subplot()
    top, ticks = 0.0, []
    for line, rows in cases:
        one = next(row["ms"] for row in rows if row["implementation"] == line.baseline)
        for i, row in enumerate(rows):
            relative, y = row["ms"] / one, top + i
            axes.barh(y, relative, height=0.82, color=_colour(row["implementation"], line.baseline), linewidth=0)
            text = f"{row['implementation']}, {number(row['ms'])} ms"
            box = {"facecolor": "white", "linewidth": 0, "pad": 0.8}  # covers the line at 1
            axes.annotate(text, (relative, y), (4, 0), textcoords="offset points", va="center", fontsize=7, bbox=box)
        ticks.append((top + (len(rows) - 1) / 2, line.label))
        top += len(rows) + 0.7
    axes.axvline(1, color=INK, linewidth=0.8, zorder=0)
    axes.set_yticks(*zip(*ticks), fontsize=8)
    axes.set_ylim(top - 0.7, -0.9)
    axes.set_xlabel("time relative to the baseline (grey); shorter is faster", color=INK, fontsize=9)
    axes.set_title(device, loc="left", color=INK, fontsize=10)
    axes.margins(x=0.26)  # room for the longest text
    axes.tick_params(axis="y", length=0)
    style_axes(axes)
    return figure


def _colour(implementation: str, baseline: str) -> str:
    if is_own(implementation):
        return OWN if implementation == "fastflow" else OWN_OTHER
    return BASELINE if implementation == baseline else OTHER


def _scaling(curves: Iterable[Curve], device: str) -> Any:
    modes = list(dict.fromkeys(curve.mode for curve in curves))
    figure = new_figure(2.9 * len(modes) + 0.6, 5.2)
    grid = figure.subplots(len(UNITS), len(modes), sharex=True, sharey="row", squeeze=False)
    for panels, (field, unit) in zip(grid, UNITS.items()):
        panels[0].set_ylabel(unit, color=INK, fontsize=9)
        for axes, mode in zip(panels, modes):
            for curve in (curve for curve in curves if curve.mode == mode):
                _curve(axes, curve, field)
            axes.legend(frameon=False, fontsize=7.5, labelcolor=INK, loc="upper left")
            add_grid(axes)
            style_axes(axes)
    for axes, mode in zip(grid[0], modes):
        axes.set_title(mode, color=INK, fontsize=9)
    for axes in grid[-1]:
        lengths = sorted({n for curve in curves for n in curve.lengths})
        axes.set_xticks(lengths[:: 1 + len(lengths) // 5], [str(n) for n in lengths[:: 1 + len(lengths) // 5]])
        axes.set_xlabel("sequence length N", color=INK, fontsize=9)
    figure.suptitle(f"Attention on {device}", x=0.01, ha="left", color=INK, fontsize=10)
    return figure


def _curve(axes: Any, curve: Curve, field: str) -> None:
    own = is_own(curve.implementation)
    style = {"color": OWN, "marker": "o", "markersize": 4}
    if not own:  # stays visible around fastflow's marker where both are equal
        style = {"color": BASELINE, "marker": "s", "markersize": 8, "markerfacecolor": "none", "linestyle": "--"}
    label = f"{curve.implementation}, $N^{{{curve.slope(field):.2f}}}$"
    axes.loglog(curve.lengths, curve.values(field), base=2, linewidth=1.6, label=label, **style)
    axes.set_yscale("log", base=10)
