"""The page's section on correctness, from the rows of ``tests/gpu``."""

from collections.abc import Sequence

from bench.harness.rows import Row
from bench.report import markdown

_HEAD = ("part", "verdict", "tried", "faults", "s", "worst", "commit", "date")
_FIELDS = ("check", "verdict", "tried", "faults", "seconds", "worst", "commit", "date")


def check_lines(rows: Sequence[Row]) -> list[str]:
    """Return the section as Markdown lines, none without rows."""
    if not rows:
        return []
    cells = [[row[name] for name in _FIELDS] for row in rows]
    remarks = [f"- {row['check']}: {remark}" for row in rows for remark in row["remarks"]]
    return [
        "## Correctness",
        "",
        f"`make gpu-check` with torch {rows[-1]['torch']}, triton {rows[-1]['triton']}, driver {rows[-1]['driver']}. "
        "Worst: the largest used share of an error budget.",
        "",
        *markdown.table(_HEAD, cells, ("part", "verdict", "worst", "commit", "date")),
        *(["", *remarks] if remarks else []),
        "",
    ]
