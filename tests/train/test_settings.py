"""Every number of every command has an interval, and nothing outside it is accepted."""

import dataclasses
import math
import typing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastflow.cli import likelihood, sample
from fastflow.train import config
from fastflow.train.settings import Interval

COMMANDS = {
    "train": (config, config.Config, {}),
    "sample": (sample, sample.Sample, {"run": Path("run")}),
    "likelihood": (likelihood, likelihood.Likelihood, {"run": Path("run")}),
}


def hints(kind: type) -> dict[str, tuple[Any, ...]]:
    return {name: typing.get_args(hint) or (hint,) for name, hint in typing.get_type_hints(kind).items()}


def of_type(*kinds: type) -> list[Any]:
    return [
        pytest.param(command, name, id=f"{command} {name}")
        for command, (_, kind, _) in COMMANDS.items()
        for name, choices in hints(kind).items()
        if choices[0] in kinds
    ]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_has_an_interval(command: str) -> None:
    module, kind, _ = COMMANDS[command]
    numbers = {name for name, choices in hints(kind).items() if choices[0] in (int, float)}
    assert set(module.INTERVALS) == numbers
    assert numbers <= {field.name for field in dataclasses.fields(kind)}


def build(command: str, **values: Any) -> Any:
    _, kind, required = COMMANDS[command]
    return kind(**{**required, **values})


@pytest.mark.parametrize(("command", "name"), of_type(int, float))
def test_numbers_outside_their_interval_are_refused(command: str, name: str) -> None:
    module: ModuleType = COMMANDS[command][0]
    interval: Interval = module.INTERVALS[name]
    is_int = hints(COMMANDS[command][1])[name][0] is int
    outside = [10**400] if is_int else [math.nan, math.inf, -math.inf]
    if interval.low > -math.inf:
        outside += [interval.low - 1, -(10**400)] + ([interval.low] if interval.low_open else [])
    if interval.high < math.inf:
        outside += [interval.high + 1] + ([interval.high] if interval.high_open else [])
    for value in outside:
        with pytest.raises(ValueError, match=f"^{name} must (not )?be ") as caught:
            build(command, **{name: int(value) if is_int else value})
        assert "\n" not in str(caught.value)
    if not interval.low_open and interval.low > -math.inf:
        assert getattr(build(command, **{name: interval.low}), name) == interval.low
    if not interval.high_open and interval.high < math.inf:
        assert getattr(build(command, **{name: interval.high}), name) == interval.high
    for wrong in ("1", True, 1.5 if is_int else 1j):
        with pytest.raises(TypeError, match=f"^{name} must be (an int|a float), got "):
            build(command, **{name: wrong})


@pytest.mark.parametrize(("command", "name"), of_type(bool, str, Path))
def test_wrong_types_are_refused(command: str, name: str) -> None:
    for wrong in (3, b"x"):
        with pytest.raises(TypeError, match=f"^{name} must be a "):
            build(command, **{name: wrong})


@pytest.mark.parametrize(
    ("command", "name"),
    [("train", n) for n in ("path", "times", "precision", "solver")]
    + [("sample", "solver"), ("likelihood", "solver"), ("likelihood", "method")],
)
def test_unknown_choices_are_refused(command: str, name: str) -> None:
    for wrong in ("nonsense", None, 1, []):
        with pytest.raises(ValueError, match=rf"^{name} must be one of '"):
            build(command, **{name: wrong})


def test_the_edges_of_an_interval() -> None:
    for interval, value, message in (
        (Interval(0, low_open=True), 0.0, "x must be positive, got 0.0"),
        (Interval(0, low_open=True), math.inf, "x must be positive and finite, got inf"),
        (Interval(0, 1, high_open=True), 1.0, r"x must be in \[0, 1\), got 1.0"),
        (Interval(0), -1, "x must not be negative, got -1"),
        (Interval(0), math.nan, "x must be finite, got nan"),
        (Interval(2, 9), 1, "x must be at least 2, got 1"),
        (Interval(2, 9), 10, "x must be at most 9, got 10"),
    ):
        with pytest.raises(ValueError, match=message):
            interval.check("x", value)
