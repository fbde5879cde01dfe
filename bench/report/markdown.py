"""Markdown tables and the numbers in them."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any


def table(head: Sequence[str], body: Iterable[Sequence[Any]], text: Collection[str]) -> list[str]:
    """Return the lines of a table. text: the columns that are aligned left; the others are numbers."""
    rules = ["---" if name in text else "--:" for name in head]
    return [
        f"| {' | '.join(head)} |",
        f"|{'|'.join(rules)}|",
        *(f"| {' | '.join(map(str, cells))} |" for cells in body),
    ]


def decimals(value: float | None) -> str:
    """Format a ratio, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def number(value: float | None) -> str:
    """Format three significant digits, or a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
