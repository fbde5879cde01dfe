"""Choose rows of the tuning table in ``kernels/attention/config.py``, and rewrite its source."""

import re
from collections.abc import Mapping
from dataclasses import astuple
from typing import NamedTuple

from fastflow.kernels.attention.config import Config


class Timed(NamedTuple):
    """The fastest configuration of a direction. evidence: the comment beside it in the table."""

    config: Config
    ms: float
    evidence: str


def chosen(fastest: Mapping[str, Timed]) -> dict[str, Timed | None]:
    """Return the rows to write; None removes a row.

    A joint row stays only if its launch beats the two that it replaces. It is not in the result, so left alone, if
    these two were not timed.
    """
    rows: dict[str, Timed | None] = dict(fastest)
    for side in ("dkdv", "dq"):
        joint, *others = (fastest.get(f"{side}-{mode}") for mode in ("joint", "primal", "plain"))
        if joint is None:
            continue
        if None in others:
            del rows[f"{side}-joint"]
        elif joint.ms > sum(x.ms for x in others):
            rows[f"{side}-joint"] = None
    return rows


def rewritten(text: str, arch: str, width: int, rows: Mapping[str, Timed | None]) -> str:
    """Return config.py's source with rows of one architecture (or fp32) and width replaced; None removes a row."""
    head = f'    ("{arch}", {width}): {{\n'
    start = text.index(head) + len(head)
    end = text.index("    },\n", start)
    block = text[start:end]
    for direction in rows:
        entry = rf'"{direction}": \([\d, ]+\),'
        block = re.sub(rf"^ *{entry}  #.*\n", "", block, flags=re.MULTILINE)  # alone on its line, with evidence
        block = re.sub(rf" ?{entry}", "", block)
    kept = [f"        {line.strip()}\n" for line in block.splitlines() if line.strip()]
    timed = [f'        "{d}": {_numbers(x.config)},  # {x.evidence}\n' for d, x in rows.items() if x is not None]
    return text[:start] + "".join(kept + timed) + text[end:]


def _numbers(config: Config) -> tuple[int, ...]:
    """Return the row's numbers; tangents are written only if there are several."""
    return astuple(config)[: None if config.tangents > 1 else -1]
