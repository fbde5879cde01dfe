"""Every mode of the gated residual against ``x + gate * y`` in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import fastflow as ff
from tests.compare import DEVICE, assert_close, tensors
from tests.modes import MODES, Problem

B, N, D, K = 2, 3, 4, 3
GATES = {"sample": (B, 1, D), "token": (B, N, D)}
SUBSETS = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]
FEWER = [mode for mode in MODES if not mode.startswith(("hessian", "jacobian", "dual_level_with"))]


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype)


def problem(gate: str = "sample", dtype: torch.dtype = torch.float64) -> Problem:
    def triple(seed: int, *lead: int) -> tuple[Tensor, ...]:
        return tuple(draw(*lead, *shape, seed=seed + i, dtype=dtype) for i, shape in enumerate(shapes))

    shapes = (B, N, D), GATES[gate], (B, N, D)
    x, t, ts, xs = triple(0), triple(3), triple(6, K), triple(9, K)
    return Problem(x, t, ts, xs, draw(B, N, D, seed=12, dtype=dtype), draw(K, B, N, D, seed=13, dtype=dtype))


def spelled_out(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return x + gate * y


def check(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        assert_close(a, b, tolerance)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("mode", MODES)
def test_mode(mode: str, gate: str) -> None:
    check(MODES[mode](ff.gated_add, problem(gate)), MODES[mode](spelled_out, problem(gate)))


@pytest.mark.parametrize("positions", SUBSETS, ids=str)
@pytest.mark.parametrize("mode", FEWER)
def test_mode_of_some_inputs(mode: str, positions: tuple[int, ...]) -> None:
    """Each subset of missing tangents and of unwanted gradients."""
    check(*(MODES[mode](*problem().at(positions, f)) for f in (ff.gated_add, spelled_out)))
