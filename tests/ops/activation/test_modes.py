"""Every mode of differentiation against PyTorch's own activations in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow import gelu, silu, swiglu
from tests.compare import DEVICE, assert_close, tensors
from tests.modes import MODES, Problem

K = 3
KERNEL_MODES = (  # each function of the op, with one and with many tangents and cotangents
    "forward_mode", "reverse_over_forward", "forward_over_reverse", "reverse_over_reverse", "vmap_of_vjp",
    "grad_of_vmap_of_jvp", "create_graph_and_again", "dual_level_then_backward",
)  # fmt: skip
FUNCTIONS = {  # ours, PyTorch's, number of arguments
    "gelu": (gelu, F.gelu, 1),
    "gelu_tanh": (lambda x, **o: gelu(x, "tanh", **o), lambda x: F.gelu(x, approximate="tanh"), 1),
    "silu": (silu, lambda x: x * x.sigmoid(), 1),  # PyTorch's silu lacks a mode: a backward inside a dual level
    "swiglu": (swiglu, lambda a, b: a * a.sigmoid() * b, 2),
}


def problem(num: int, dtype: torch.dtype = torch.float64, shape: tuple[int, ...] = (2, 3, 4)) -> Problem:
    generator = torch.Generator().manual_seed(0)

    def randn(*lead: int) -> Tensor:
        return torch.randn(*lead, *shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype)

    x, t, ts, xs = ([randn(*lead) for _ in range(num)] for lead in ((), (), (K,), (K,)))
    return Problem(x, t, ts, xs, randn(), randn(K))


def check(actual: Any, expected: Any, name: str, tolerance: float = 1e-12) -> None:
    for i, (x, y) in enumerate(zip(tensors(actual), tensors(expected), strict=True)):
        assert_close(x, y, tolerance, f"{name}[{i}]")


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("name", MODES)
def test_mode(name: str, function: str) -> None:
    ours, pytorchs, num = FUNCTIONS[function]
    p = problem(num)
    check(MODES[name](ours, p), MODES[name](pytorchs, p), name)


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("name", MODES)
def test_mode_of_one_input(name: str, position: int) -> None:
    p = problem(2)
    ours, pytorchs = (MODES[name](*p.at((position,), FUNCTIONS["swiglu"][i])) for i in (0, 1))
    check(ours, pytorchs, name)


@pytest.mark.parametrize("name", MODES)
def test_dtypes_are_pytorchs(name: str) -> None:
    ours, pytorchs, num = FUNCTIONS["swiglu"]
    p = problem(num, torch.bfloat16)
    actual, expected = (tensors(MODES[name](f, p)) for f in (ours, pytorchs))
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in expected]


@pytest.mark.parametrize("name", KERNEL_MODES)
def test_mode_of_the_kernels(name: str) -> None:
    pytest.importorskip("triton")
    ours, pytorchs, num = FUNCTIONS["swiglu"]
    p, double = (problem(num, dtype, (2, 3)) for dtype in (torch.float32, torch.float64))
    check(MODES[name](lambda *x: ours(*x, backend="triton"), p), MODES[name](pytorchs, double), name, 1e-5)
