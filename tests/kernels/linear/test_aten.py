"""PyTorch's GEMMs with explicit tangents, against autograd through the reference."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fastflow.kernels.linear import aten, reference
from tests.compare import assert_close

IN, OUT, K = 4, 5, 3
EVERYTHING = (True, True, True)
SUBSETS = [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def operands(G: int, M: int, *lead: int, seed: int = 0) -> list[Tensor]:
    shapes = (G, M, IN), (G, OUT, IN), (G, 1, OUT)
    return [draw(seed + i, *lead, *shape).requires_grad_() for i, shape in enumerate(shapes)]


def assert_all_close(actual: Any, expected: Any) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-13)


@pytest.mark.parametrize("is_short", [True, False])
@pytest.mark.parametrize("has_g", [True, False])
@pytest.mark.parametrize("given", SUBSETS, ids=str)
@pytest.mark.parametrize("G", [1, 2])
def test_against_the_reference(
    G: int, given: tuple[int, ...], has_g: bool, is_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aten, "_MIN_WEIGHT", 0 if is_short else 1 << 19)
    x, M = operands(G, 6), 6
    ts = [t if is_given else None for t, is_given in zip(operands(G, M, K, seed=9), given)]
    expected = reference.dual_forward(*x, *ts)
    with torch.no_grad():
        assert_all_close(aten.dual_forward(*x, *ts), expected)
        assert_all_close(aten.forward(*x), expected[:1])
    g, h = draw(20, G, M, OUT) if has_g else None, draw(21, K, G, M, OUT)
    energy = (expected[1] * h).sum() + (0 if g is None else (expected[0] * g).sum())
    leaves = [*x, *(t for t in ts if t is not None)]
    grads = torch.autograd.grad(energy, leaves, materialize_grads=True)
    with torch.no_grad():
        actual = aten.dual_backward(g, h, *x, *ts, EVERYTHING, EVERYTHING)
    assert [dx is None for dx in actual[3:]] == [t is None for t in ts]
    assert_all_close([dx for dx in actual if dx is not None], grads)


@pytest.mark.parametrize("lead", [(), (K,)])
@pytest.mark.parametrize("wants", SUBSETS, ids=str)
def test_backward(wants: tuple[int, ...], lead: tuple[int, ...]) -> None:
    x = operands(1, 6)
    g = draw(30, *lead, 1, 6, OUT)
    (out,) = reference.forward(*x)
    expected = torch.autograd.grad(out, x, g, is_grads_batched=bool(lead))
    with torch.no_grad():
        actual = aten.backward(g, *x, wants)
    assert [dx is not None for dx in actual] == [bool(wanted) for wanted in wants]
    assert_all_close([a for a in actual if a is not None], [e for e, wanted in zip(expected, wants) if wanted])


@pytest.mark.parametrize("is_short", [True, False])
def test_results_own_their_memory(is_short: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aten, "_MIN_WEIGHT", 0 if is_short else 1 << 19)
    x, ts = operands(1, 6), operands(1, 6, K, seed=9)
    with torch.no_grad():
        out, t_out = aten.dual_forward(*x, *ts)
        assert out.untyped_storage().data_ptr() != t_out.untyped_storage().data_ptr()
        assert out.is_contiguous()
        assert t_out.is_contiguous()
