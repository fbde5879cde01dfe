"""The kernels and the ATen implementation of the gated residual against the reference in float64."""

from types import SimpleNamespace

import pytest
import torch

from fastflow.kernels.gate import aten, reference
from tests.compare import assert_close
from tests.kernels.gate.problems import TOLERANCES, draw, oracle

SHAPES = [(2, 5, 7), (1, 1, 1), (3, 1, 63), (1, 70, 100)]
SUBSETS = [(True, True, True), (True, False, False), (False, True, False), (False, False, True), (False, True, True)]


@pytest.fixture(params=["aten", "triton"])
def implementation(request):
    if request.param == "aten":
        return aten
    pytest.importorskip("triton")
    from fastflow.kernels.gate import backward, forward

    return SimpleNamespace(dual_forward=forward.dual_forward, dual_backward=backward.dual_backward)


def check(implementation, shape, dtype, shared, has_tangent=(True,) * 3, has_cotangent=(True, True), K=2):
    """Compare both outputs and every gradient. has_cotangent: of out and of t_out."""
    G, M, D = shape
    shapes = shape, (G, 1 if shared else M, D), shape
    x = draw(shapes, dtype)
    tangents = draw([(K, *s) if has else None for s, has in zip(shapes, has_tangent)], dtype, seed=1)
    g, h = draw([lead if has else None for lead, has in zip((shape, (K, *shape)), has_cotangent)], dtype, seed=2)
    outputs, grads = oracle(reference.dual_forward, x, tangents, (g, h))
    for actual, expected in zip(implementation.dual_forward(*x, *tangents), outputs, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, TOLERANCES[dtype])
    t_wants = [has and h is not None for has in has_tangent[1:]]
    of_h = tangents[1:] if h is not None else (None, None)
    actual = implementation.dual_backward(g, h, *x[1:], *of_h, (True, True), t_wants)
    expected = *grads[1:3], *(dx if want else None for dx, want in zip(grads[4:], t_wants))
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == dtype
            assert_close(a, b, TOLERANCES[dtype])


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_gradient(implementation, shape, shared):
    check(implementation, shape, torch.float32, shared)


@pytest.mark.parametrize("has_cotangent", [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("has_tangent", SUBSETS)
def test_absent_tangents_and_cotangents(implementation, has_tangent, has_cotangent):
    check(implementation, (2, 3, 5), torch.float32, True, has_tangent, has_cotangent, K=1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_of_aten(dtype):
    check(aten, (2, 5, 7), dtype, True)


def test_float16_kernels():
    pytest.importorskip("triton")
    from fastflow.kernels.gate import backward, forward

    kernels = SimpleNamespace(dual_forward=forward.dual_forward, dual_backward=backward.dual_backward)
    check(kernels, (2, 5, 33), torch.float16, True)


def test_long_groups_are_cut_into_blocks(monkeypatch):
    monkeypatch.setattr("fastflow.kernels.gate.blocks._CPU_ELEMENTS", 64)
    for shared in (True, False):
        check(aten, (3, 11, 13), torch.float64, shared)
    check(aten, (7, 2, 13), torch.float64, True)


def test_rows_of_any_stride(implementation):
    x, gate, y, g, h = draw([(3, 6, 8), (3, 1, 16), (3, 5, 6), (3, 6, 8), (2, 1, 1, 8)], torch.float32)
    x, gate, y, g, h = x.mT[:, :5], gate[..., ::2][..., :6], y, g.mT[:, 2:7], h.expand(2, 3, 5, 8)[..., :6]
    t_gate, ty = h[:, :, :1], h.flip(0)
    outputs, grads = oracle(reference.dual_forward, (x, gate, y), (None, t_gate, ty), (g, h))
    for actual, expected in zip(implementation.dual_forward(x, gate, y, None, t_gate, ty), outputs, strict=True):
        assert_close(actual, expected, 2e-6)
    actual = implementation.dual_backward(g, h, gate, y, t_gate, ty, (True, True), (True, True))
    for a, b in zip(actual, (*grads[1:3], *grads[4:]), strict=True):
        assert_close(a, b, 2e-6)


def test_mixed_dtypes(implementation):
    """As under autocast: the residual in float32, the branch and the gate in float16."""
    x, y, gate, g = draw([(2, 3, 5)] * 2 + [(2, 1, 5), (2, 3, 5)], torch.float32)
    y, gate = y.half(), gate.half()
    out, t_out = implementation.dual_forward(x, gate, y, g[None], None, y[None])
    assert out.dtype == t_out.dtype == torch.float32
    assert_close(out, x.double() + gate.double() * y.double(), 1e-6)
    d_gate, dy, *_ = implementation.dual_backward(g, None, gate, y, None, None, (True, True), (False, False))
    assert d_gate.dtype == dy.dtype == torch.float16
    assert_close(dy, gate.double() * g.double(), 1e-3)
    assert_close(d_gate, (g.double() * y.double()).sum(1, keepdim=True), 1e-3)


def test_nothing_in_gives_nothing_out(implementation):
    x, gate = draw([(2, 0, 5), (2, 1, 5)], torch.float32)
    out, t_out = implementation.dual_forward(x, gate, x, x[None], gate[None], None)
    assert (out.shape, t_out.shape) == ((2, 0, 5), (1, 2, 0, 5))
    grads = implementation.dual_backward(x, x[None], gate, x, gate[None], None, (True, True), (True, False))
    assert (grads[0].shape, grads[3]) == ((2, 1, 5), None)
    assert not any(z.any() for z in grads[:3])


def test_sums_over_many_rows_give_the_same_bits_again(implementation):
    y, gate, g = draw([(1, 300, 16), (1, 1, 16), (1, 300, 16)], torch.float32)
    first, again = (
        implementation.dual_backward(g, g[None], gate, y, None, None, (True, False), (True, False)) for _ in range(2)
    )
    assert all(torch.equal(a, b) for a, b in ((first[0], again[0]), (first[2], again[2]), (first[0], first[2][0])))
    assert_close(first[0], (g.double() * y.double()).sum(1, keepdim=True), 1e-6)
