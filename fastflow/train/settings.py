"""Check the values of a dataclass of settings against its annotations and intervals."""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from .._checks import check_choice


@dataclass(frozen=True)
class Interval:
    """Finite numbers from low to high; an open end is not included."""

    low: float = -math.inf
    high: float = math.inf
    low_open: bool = False
    high_open: bool = False

    def check(self, name: str, value: float) -> None:
        """Raise a ValueError unless value lies in the interval."""
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        if not (above and below and _is_finite(value)):  # false for NaN
            raise ValueError(f"{name} must {self._wanted(value, above)}, got {value}")

    def _wanted(self, value: float, above: bool) -> str:
        if self.high_open:
            return f"be in {'(' if self.low_open else '['}{self.low:g}, {self.high:g})"
        if self.low_open:
            return ("be positive" if self.low == 0 else f"be above {self.low:g}") + (" and finite" if above else "")
        if not _is_finite(value):
            return "be finite"
        if above:
            return f"be at most {self.high}"
        return "not be negative" if self.low == 0 else f"be at least {self.low}"


def _is_finite(value: float) -> bool:
    return abs(value) <= sys.float_info.max  # math.isfinite overflows for large integers


FINITE = Interval()
POSITIVE = Interval(0, low_open=True)
NOT_NEGATIVE = Interval(0)
FRACTION = Interval(0, 1, high_open=True)
GUIDANCE = Interval(-1e6, 1e6)  # far above any use; fp32 cannot hold what some larger scales give
SEED = Interval(0, 2**63 - 1)
COUNT = Interval(1, 10**12)
COUNT_OR_NONE = Interval(0, 10**12)
SOLVER_STEPS = Interval(1, 10**6)


def check_settings(settings: Any, intervals: Mapping[str, Interval]) -> None:
    """Check the type of every field of a dataclass, its choices if it has some, and its interval if it is a number.

    Raises:
        TypeError: a value has another type than its annotation.
        ValueError: a value is none of its choices, or outside its interval.
    """
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        value, kinds = getattr(settings, field.name), _alternatives(hints[field.name])
        if value is None and type(None) in kinds:
            continue
        kind = kinds[0]
        if typing.get_origin(kind) is Literal:
            check_choice(field.name, value, kind)
            continue
        if typing.get_origin(kind) is tuple:
            item = typing.get_args(kind)[0]
            if not (isinstance(value, tuple) and all(_fits(v, item) for v in value)):
                raise TypeError(f"{field.name} must be a tuple of {item.__name__}, got {value!r}")
            continue
        if not _fits(value, kind):
            raise TypeError(f"{field.name} must be {_A[kind]}, got {value!r} of type {type(value).__name__}")
        if kind in (int, float):
            intervals[field.name].check(field.name, value)


_A = {bool: "a bool", int: "an int", float: "a float", str: "a str", Path: "a Path"}


def _fits(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
