"""The page of a device: every row, with the roofs it is set against."""

from collections.abc import Iterable, Sequence

from bench._rows import Row, path_of
from bench._table import SUITES, Table, decimals, markdown, measured_on, number

HEAD = ("mode", "shape", "dtype", "implementation", "launch", "ms", "p20 – p80", "× baseline")
HEAD += ("TFLOP/s", "GB/s", "share of roof", "peak MiB", "error")


def page(table: Table, checks: Sequence[str], pictures: Iterable[str]) -> str:
    """Markdown. checks: lines about correctness that stand above the timings. pictures: names of files beside it."""
    lines = [
        f"# {table.device}",
        "",
        f"Made by `python -m bench.report` from `{path_of(table.device).name}`.",
        "",
        *checks,
        f"## Time and memory\n\n{measured_on(table.rows)}.\n",
        *_roofs(table.rows),
        *(f"![{name}]({name})\n" for name in pictures),
    ]
    for op in SUITES:
        if rows := [row for row in table.rows if row["op"] == op and "times_as_fast" in row]:
            lines += _section(op, rows)
    return "\n".join([*lines, *_slopes(table), *_largest(table.rows)]).rstrip() + "\n"


def _roofs(rows: Iterable[Row]) -> list[str]:
    """Of each run, the best: a roof is what the device can do."""
    best: dict[str, tuple[float, float]] = {}
    for row in (row for row in rows if "roof_tflops" in row):
        flops, bytes_ = best.get(row["dtype"], (0, 0))
        best[row["dtype"]] = max(flops, row["roof_tflops"]), max(bytes_, row["roof_gbps"])
    if not best:
        return []
    body = [(dtype, number(flops), number(bytes_)) for dtype, (flops, bytes_) in best.items()]
    text = "The roofs: the fastest large matrix product and the fastest large copy, measured in the same run."
    return [text, "", *markdown(("dtype", "TFLOP/s", "GB/s"), body, slice(1, None)), ""]


def _section(op: str, rows: Sequence[Row]) -> list[str]:
    notes = {row["note"]: row["mode"] for row in rows if row["note"]}
    return [
        f"## {op[0].upper()}{op[1:]}",
        "",
        f"`python -m {SUITES[op]} --record`",
        "",
        *markdown(HEAD, map(_cells, rows), slice(5, None)),
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
    return (
        ["## Growth with N", "", "Fitted exponents: 1 is linear.", "", *markdown(head, body, slice(2, None)), ""]
        if body
        else []
    )


def _largest(rows: Iterable[Row]) -> list[str]:
    body = [
        (row["mode"], row["implementation"], str(row["batch"]), str(row["images_per_second"]))
        for row in rows
        if row["op"] == "largest batch"
    ]
    head = ("step", "implementation", "largest batch", "images/s at it")
    return ["## Largest batch that fits", "", *markdown(head, body, slice(2, None)), ""] if body else []
