"""The page of a device: fastflow against its baselines, every row, and the roofs."""

from collections.abc import Iterable, Sequence

from bench.harness.rows import Row, path_of
from bench.report import bars, markdown
from bench.report.comparison import comparison
from bench.report.correctness import check_lines
from bench.report.markdown import decimals, number
from bench.report.steps import steps_over_plain
from bench.report.table import SUITES, Table, measured_on

HEAD = ("mode", "shape", "dtype", "implementation", "launch", "ms", "p20 – p80", "× baseline")
HEAD += ("TFLOP/s", "GB/s", "share of roof", "peak MiB", "error")


def page(table: Table, checks: Sequence[Row], pictures: Iterable[str]) -> str:
    """Return Markdown. checks: the rows of the correctness checks. pictures: names of files beside the page."""
    lines = [
        f"# {table.device}",
        "",
        f"Made by `python -m bench.report` from `{path_of(table.device).name}`.",
        "",
        *check_lines(checks),
    ]
    if not table.rows:
        return _text(lines)
    lines += [
        "## fastflow against its baselines",
        "",
        *(f"{paragraph}\n" for paragraph in comparison(table, table.lines())),
        *(f"![{name}]({name})\n" for name in pictures),
        *bars.section(table),
        f"## All rows\n\n{measured_on(table.rows)}.\n",
        *_roofs(table.rows),
    ]
    for op in SUITES:
        if rows := [row for row in table.rows if row["op"] == op and "times_as_fast" in row]:
            lines += _section(op, rows)
    return _text([*lines, *steps_over_plain(table), *_slopes(table), *_largest(table.rows)])


def _text(lines: Iterable[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def _roofs(rows: Iterable[Row]) -> list[str]:
    """Show the best roofs of all runs, because a roof is what the device can do."""
    best: dict[str, tuple[float, float]] = {}
    for row in (row for row in rows if "roof_tflops" in row):
        flops, bytes_ = best.get(row["dtype"], (0, 0))
        best[row["dtype"]] = max(flops, row["roof_tflops"]), max(bytes_, row["roof_gbps"])
    if not best:
        return []
    body = [(dtype, number(flops), number(bytes_)) for dtype, (flops, bytes_) in best.items()]
    text = "The roofs are the fastest large GEMM and the fastest large copy, measured in the same run."
    return [text, "", *markdown.table(("dtype", "TFLOP/s", "GB/s"), body, ("dtype",)), ""]


def _section(op: str, rows: Sequence[Row]) -> list[str]:
    notes = {row["note"]: row["mode"] for row in rows if row["note"]}
    return [
        f"### {op[0].upper()}{op[1:]}",
        "",
        f"`python -m {SUITES[op]} --record`",
        "",
        *markdown.table(HEAD, map(_cells, rows), HEAD[:5]),
        "",
        *(f"- {mode}: {note}." for note, mode in notes.items()),
        *([""] if notes else []),
    ]


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row["mode"],
        " × ".join(map(str, row["shape"])),
        row["dtype"],
        row["implementation"],
        row["launch"],
        number(row["ms"]),
        f"{number(row['ms_p20'])} – {number(row['ms_p80'])}",
        decimals(row["times_as_fast"]),
        number(row["tflops"]),
        number(row["gbps"]),
        f"{row['roof_share']:.0%} of {row['bound']}",
        number(row["peak_mb"]),
        f"{row['error']:.0e}",
    )


def _slopes(table: Table) -> list[str]:
    body = [
        (
            c.mode,
            c.implementation,
            f"{c.lengths[0]} … {c.lengths[-1]}",
            decimals(c.slope("ms")),
            decimals(c.slope("peak_mb")),
        )
        for c in table.curves()
    ]
    head = ("mode", "implementation", "N", "time", "peak memory")
    text = "Fitted exponents: 1 is linear, 2 is quadratic."
    return ["## Growth with N", "", text, "", *markdown.table(head, body, head[:2]), ""] if body else []


def _largest(rows: Iterable[Row]) -> list[str]:
    body = [
        (row["mode"], row["implementation"], row["batch"], row["images_per_second"])
        for row in rows
        if row["op"] == "largest batch"
    ]
    head = ("step", "implementation", "largest batch", "images/s at it")
    return ["## Largest batch that fits", "", *markdown.table(head, body, head[:2]), ""] if body else []
