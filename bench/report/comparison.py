"""The table of fastflow against its baselines, for the README and the pages, with the reasons for slower rows."""

from collections.abc import Callable, Sequence

from bench.report import markdown
from bench.report.markdown import decimals, number
from bench.report.table import SUITES, Line, Table, is_gpu, measured_on

EXPLAINED = 0.95  # a ratio below it needs a reason
_TEXT = ("what", "baseline", "command")
Cell = Callable[[Table, Line], str]


def comparison(table: Table, lines: Sequence[Line]) -> list[str]:
    """Return the paragraphs: a caption, the table, and why some ratios are below 1."""
    if not lines:
        return []
    columns = _GPU_COLUMNS if is_gpu(table.device) else _COLUMNS
    rounds = [line.own["rounds"] for line in lines]
    caption = (
        f"**{table.device}**; {measured_on([line.own for line in lines])}. Medians of {min(rounds)} or more rounds "
        "that alternate between fastflow and the baseline. Times as fast: above 1, fastflow is faster. Peak memory: "
        "below 1, fastflow needs less."
    )
    body = [[cell(table, line) for cell in columns.values()] for line in lines]
    for above, cells in zip(lines, body[1:]):
        cells[0] = "" if cells[0] == above.label else cells[0]
    return [caption, "\n".join(markdown.table(tuple(columns), body, _TEXT)), *_reasons(table, lines)]


def unexplained(table: Table) -> list[Line]:
    """Return the lines where fastflow is slower than its baseline and the case gives no reason."""
    return [line for line in _slower(table, table.lines()) if not line.own["reason"]]


def _slower(table: Table, lines: Sequence[Line]) -> list[Line]:
    return [line for line in lines if table.times_as_fast(line) < EXPLAINED]


def _reasons(table: Table, lines: Sequence[Line]) -> list[str]:
    labels: dict[str, dict[str, None]] = {}
    for line in _slower(table, lines):
        if line.own["reason"]:
            labels.setdefault(line.own["reason"], {})[line.label] = None
    return [f"Below 1 ({'; '.join(slower)}) because {reason}." for reason, slower in labels.items()]


def _ratio(launch: str) -> Cell:
    return lambda table, line: decimals(table.times_as_fast(line, launch))


def _peak(table: Table, line: Line) -> str:
    own, other = line.own["peak_mb"], table.row(line.own, line.baseline)["peak_mb"]
    return f"{decimals(own / other)} ({number(own)} / {number(other)} MiB)"


def _flash(table: Table, line: Line) -> str:
    return decimals(table.times_flash(table.fastest(line)))


def _roof(table: Table, line: Line) -> str:
    return f"{table.fastest(line)['roof_share']:.0%}"


_FIRST: dict[str, Cell] = {
    "what": lambda table, line: line.label,
    "baseline": lambda table, line: line.baseline,
    "times as fast": _ratio("eager"),
}
_LAST: dict[str, Cell] = {
    "peak memory": _peak,
    "command": lambda table, line: f"`{SUITES[line.own['op']]}`",
}
_COLUMNS = {**_FIRST, **_LAST}
_GPU_COLUMNS = {
    **_FIRST,
    "as CUDA graphs": _ratio("graph"),
    "time / flash's": _flash,
    "share of roof": _roof,
    **_LAST,
}
