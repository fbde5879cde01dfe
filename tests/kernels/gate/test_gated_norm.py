"""The kernels and the ATen implementation of the gated norm against the reference in float64."""

import functools
from types import SimpleNamespace

import pytest
import torch

from fastflow.kernels.gate import aten, reference
from fastflow.kernels.gate.norm_operands import NormOperands
from tests.compare import assert_close
from tests.kernels.gate.problems import TOLERANCES, draw, oracle

ALL = (True,) * 5
SUBSETS = {  # tangents of x, gate, y, scale and shift; cotangents of sum, normed, t_sum and t_normed
    "every tangent": (ALL, (True,) * 4),
    "tangent of x": ((True, False, False, False, False), (True,) * 4),
    "tangent of scale": ((False, False, False, True, False), (False, True, True, True)),
    "tangents of gate and y": ((False, True, True, False, False), (True, False, False, True)),
    "sum alone": (ALL, (True, False, True, False)),
    "norm alone": (ALL, (False, True, False, True)),
    "tangent of the norm alone": (ALL, (False, False, False, True)),
    "tangent of the sum alone": (ALL, (False, True, True, False)),
}


@pytest.fixture(params=["aten", "triton"])
def implementation(request):
    return aten if request.param == "aten" else triton_kernels()


def triton_kernels():
    pytest.importorskip("triton")
    from fastflow.kernels.gate.norm_backward import norm_dual_backward
    from fastflow.kernels.gate.norm_forward import norm_dual_forward

    return SimpleNamespace(norm_dual_forward=norm_dual_forward, norm_dual_backward=norm_dual_backward)


def check(
    implementation, shape=(2, 3, 7), dtype=torch.float32, shared=True, centred=True, unit=True, K=1, has=ALL,
    cotangents=(True,) * 4, wants=ALL,
):  # fmt: skip
    """Compare the outputs and every gradient that is wanted."""
    G, M, D = shape
    row = (G, 1 if shared else M, D)
    shapes = shape, row, shape, row, row
    x, ts = draw(shapes, dtype), draw([(K, *s) if h else None for s, h in zip(shapes, has)], dtype, seed=1)
    options = {"eps": 1e-3, "centred": centred, "unit": unit}
    leads = (shape, shape, (K, *shape), (K, *shape))
    g_sum, g, h_sum, h = cs = draw([s if c else None for s, c in zip(leads, cotangents)], dtype, seed=2)
    wide = functools.partial(reference.norm_dual_forward, **options, dtype=torch.float64)
    outputs, grads = oracle(wide, x, ts, cs)
    total, normed, t_total, t_normed, mean, rstd, _, t_rstd = implementation.norm_dual_forward(
        *x, *ts, **options, dtype=dtype
    )
    for actual, expected in zip((total, normed, t_total, t_normed), outputs, strict=True):
        assert actual.dtype == dtype
        assert_close(actual, expected, 2 * TOLERANCES[dtype])
    _, gate, y, scale, shift = x
    t_sum = t_total if any(has[:3]) else None
    operands = NormOperands(g_sum, g, h_sum, h, total, gate, y, scale, shift, t_sum, *ts[1:], mean, rstd, t_rstd)
    t_wants = tuple(w and t for w, t in zip(wants, has))
    kinds = {"centred": centred, "unit": unit}
    actual = implementation.norm_dual_backward(operands, **kinds, wants=wants, t_wants=t_wants)
    for i, (a, b, wanted) in enumerate(zip(actual, grads, (*wants, *t_wants), strict=True)):
        assert (a is not None) == wanted
        if a is not None and b.norm() == 0:
            assert not a.any()
        elif a is not None:
            assert_close(a, b, 10 * TOLERANCES[dtype], f"gradient {i}")


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", [(True, True), (False, False)], ids=str)
def test_every_gradient(implementation, kind, shared):
    check(implementation, shared=shared, centred=kind[0], unit=kind[1])


@pytest.mark.parametrize("subset", SUBSETS)
def test_absent_tangents_and_cotangents(implementation, subset):
    has, cotangents = SUBSETS[subset]
    check(implementation, (1, 2, 5), has=has, cotangents=cotangents)


@pytest.mark.parametrize("shared", [True, False])
def test_many_tangents(implementation, shared):
    check(implementation, shared=shared, K=3)


@pytest.mark.parametrize("which", range(5))
def test_one_gradient_alone(implementation, which):
    check(implementation, (1, 2, 5), wants=tuple(i == which for i in range(5)))


@pytest.mark.parametrize("shape", [(1, 1, 63), (3, 1, 100), (1, 9, 33)], ids=str)
def test_shapes(implementation, shape):
    check(implementation, shape)


def test_a_row_of_one(implementation):
    check(implementation, (2, 3, 1), centred=False)  # a centred row of one is zero


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_of_aten(dtype):
    check(aten, (2, 5, 7), dtype)


def test_float16_kernels():
    check(triton_kernels(), (2, 5, 33), torch.float16)


def test_rows_that_share_a_partial_sum(monkeypatch):
    monkeypatch.setattr("fastflow.kernels.norm.config.PROGRAMS", 2)
    for K in (1, 2):
        check(triton_kernels(), (1, 11, 5), K=K)


def test_nothing_in_gives_nothing_out():
    kernels = triton_kernels()
    x, gate = draw([(2, 0, 5), (2, 1, 5)], torch.float32)
    kinds, nothing = {"centred": True, "unit": True}, (None,) * 4
    results = kernels.norm_dual_forward(x, gate, x, gate, gate, x[None], *nothing, eps=1e-6, dtype=x.dtype, **kinds)
    assert [tuple(y.shape) for y in results[:4]] == [(2, 0, 5)] * 2 + [(1, 2, 0, 5)] * 2
    mean, rstd, _, t_rstd = results[4:]
    cotangents, operands = (x, x, x[None], x[None]), (x, gate, x, gate, gate)
    given = NormOperands(*cotangents, *operands, x[None], *nothing, mean, rstd, t_rstd)
    grads = kernels.norm_dual_backward(given, **kinds, wants=ALL, t_wants=ALL)
    assert grads[1].shape == (2, 1, 5)
    assert not any(z.any() for z in grads)
