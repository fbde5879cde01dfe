"""Every mode of differentiation against float64 attention spelled out in plain PyTorch."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastflow.ops.attention import attention
from tests.compare import DEVICE, assert_close, math_attention, tensors
from tests.modes import MODES, Problem

TOLERANCE = 1e-10
B, H, NQ, NK, D, DV, K = 2, 4, 5, 7, 3, 2, 3
ROWS = {  # D and Dv that lead to each of the ways to serve a CPU
    "long": (D, DV),  # computed again for the backward
    "short": (5, 3),  # Nk <= D + Dv: without a mask, kept
    "native": (3, 3),  # ATen's kernel, without tangents
}


def problem(
    heads_k: int, dtype: torch.dtype = torch.float64, batch: int = B, heads: int = H, rows: str = "long"
) -> Problem:
    D, DV = ROWS[rows]
    generator = torch.Generator().manual_seed(0)

    def draw(*lead: int) -> list[Tensor]:
        shapes = ((heads, NQ, D), (heads_k, NK, D), (heads_k, NK, DV))
        return [randn(*lead, batch, *s) for s in shapes]

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype)

    x, t, ts, xs = draw(), draw(), draw(K), draw(K)
    return Problem(x, t, ts, xs, randn(batch, heads, NQ, DV), randn(K, batch, heads, NQ, DV))


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "gqa": {"enable_gqa": True},
    "bool": {"attn_mask": torch.rand(B, 1, NQ, NK, generator=torch.Generator().manual_seed(1)) > 0.3},
    "additive": {
        "attn_mask": torch.randn(1, H, 1, NK, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    },
    "masked_row": {"attn_mask": torch.zeros(NQ, NK, dtype=torch.float64).index_fill_(0, torch.tensor([1]), -torch.inf)},
}


def _check(actual: Any, expected: Any, name: str, tolerance: float = TOLERANCE) -> None:
    actual, expected = tensors(actual), tensors(expected)
    assert len(actual) == len(expected)
    for i, (x, y) in enumerate(zip(actual, expected)):
        assert_close(x, y, tolerance, f"{name}[{i}]")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODES)
def test_mode(name: str, case: str, rows: str) -> None:
    options = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in CASES[case].items()}
    p = problem(heads_k=2 if case == "gqa" else H, rows=rows)
    actual = MODES[name](lambda q, k, v: attention(q, k, v, **options), p)
    expected = MODES[name](lambda q, k, v: math_attention(q, k, v, **options), p)
    _check(actual, expected, name)


ALONE = [(rows, (i,)) for rows in ROWS for i in range(3)] + [("long", pair) for pair in ((0, 1), (0, 2), (1, 2))]


@pytest.mark.parametrize(("rows", "positions"), ALONE, ids=str)
@pytest.mark.parametrize("name", MODES)
def test_mode_of_some_inputs(name: str, rows: str, positions: tuple[int, ...]) -> None:
    """Each input differentiated and mapped alone, and each tangent missing."""
    p = problem(H, rows=rows)
    actual, expected = (MODES[name](*p.at(positions, f)) for f in (attention, math_attention))
    _check(actual, expected, name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", MODES)
def test_dtypes_are_pytorchs(name: str, dtype: torch.dtype) -> None:
    p = problem(H, dtype)
    actual, expected = (tensors(MODES[name](f, p)) for f in (attention, math_attention))
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in expected]


@pytest.mark.parametrize("rows", ["long", "short"])
@pytest.mark.parametrize("name", MODES)
def test_mode_of_the_reference_alone(name: str, rows: str) -> None:
    p = problem(heads_k=H, rows=rows)
    actual = MODES[name](lambda q, k, v: attention(q, k, v, backend="reference"), p)
    _check(actual, MODES[name](math_attention, p), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_mode_of_the_kernels(name: str) -> None:
    pytest.importorskip("triton")
    p, double = (problem(1, dtype, batch=1, heads=1) for dtype in (torch.float32, torch.float64))
    actual = MODES[name](lambda q, k, v: attention(q, k, v, backend="triton"), p)
    _check(actual, MODES[name](math_attention, double), name, 1e-5)
