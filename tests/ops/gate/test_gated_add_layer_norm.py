"""Every mode of the gated norm against the two ops written out, in float64."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor

import fastflow as ff
from tests.compare import DEVICE, assert_close, math_layer_norm, tensors
from tests.modes import MODES, Problem

B, N, D, K = 2, 3, 4, 3
FEWER = [mode for mode in MODES if not mode.startswith(("hessian", "jacobian", "dual_level_with"))]


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype)


W = draw(B, N, D, seed=100)
CASES: dict[str, tuple[tuple[int, ...], ...]] = {  # shapes of x, gate, y, scale, shift
    "sample": ((B, N, D), (B, 1, D), (B, N, D), (B, 1, D), (B, 1, D)),
    "token": ((B, N, D),) * 5,
    "unmodulated": ((B, N, D), (B, 1, D), (B, N, D)),
}


def problem(case: str = "sample", dtype: torch.dtype = torch.float64) -> Problem:
    shapes = CASES[case]

    def group(seed: int, *lead: int) -> tuple[Tensor, ...]:
        return tuple(draw(*lead, *shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes))

    x, t, ts, xs = group(0), group(10), group(20, K), group(30, K)
    return Problem(x, t, ts, xs, draw(B, N, D, seed=40, dtype=dtype), draw(K, B, N, D, seed=41, dtype=dtype))


def fused(x: Tensor, gate: Tensor, y: Tensor, *modulation: Tensor, uses: str = "both", **options: Any) -> Tensor:
    """A function of both outputs, or one of them."""
    scale, shift = modulation or (None, None)
    return combined(*ff.gated_add_layer_norm(x, gate, y, scale=scale, shift=shift, **options), uses)


def spelled_out(
    x: Tensor, gate: Tensor, y: Tensor, *modulation: Tensor, uses: str = "both", norm: str = "layer"
) -> Tensor:
    total = x + gate * y
    n = (
        math_layer_norm(total, (D,), eps=1e-6)
        if norm == "layer"
        else total / (total.square().mean(-1, True) + 1e-6).sqrt()
    )
    return combined(total, n * (1 + modulation[0]) + modulation[1] if modulation else n, uses)


def combined(total: Tensor, normed: Tensor, uses: str) -> Tensor:
    return {"both": lambda: total + W * normed, "sum": lambda: total, "normed": lambda: normed}[uses]()


def check(actual: Any, expected: Any, tolerance: float = 1e-11) -> None:
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        assert_close(a, b, tolerance)


def compare(mode: str, p: Problem, **options: Any) -> None:
    check(*(MODES[mode](functools.partial(f, **options), p) for f in (fused, spelled_out)))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mode", MODES)
def test_mode(mode: str, case: str) -> None:
    compare(mode, problem(case))


@pytest.mark.parametrize("mode", FEWER)
def test_mode_of_the_sum_alone(mode: str) -> None:
    """The cotangents of the norm are absent."""
    check(*(MODES[mode](*problem().at((0, 1, 2), functools.partial(f, uses="sum"))) for f in (fused, spelled_out)))


@pytest.mark.parametrize("mode", FEWER)
def test_mode_of_the_norm_alone(mode: str) -> None:
    compare(mode, problem(), uses="normed")


@pytest.mark.parametrize("mode", FEWER)
def test_mode_of_rms_norm(mode: str) -> None:
    compare(mode, problem(), norm="rms")


@pytest.mark.parametrize("positions", [(0,), (1,), (2, 3), (4,)], ids=str)
@pytest.mark.parametrize("mode", FEWER)
def test_mode_of_some_inputs(mode: str, positions: tuple[int, ...]) -> None:
    """Subsets of missing tangents and of unwanted gradients."""
    check(*(MODES[mode](*problem().at(positions, f)) for f in (fused, spelled_out)))
