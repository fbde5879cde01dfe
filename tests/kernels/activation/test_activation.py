"""The reference against PyTorch's own functions, every other implementation against the reference in float64."""

import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.kernels.activation import aten, blocks, reference
from fastflow.kernels.activation.rows import as_rows
from tests.compare import DEVICE, assert_close, tensors

OWN = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
}
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
GIVEN = {  # which of b, tx, tb, g
    "activation": (False, True, False, True),
    "activation, no g": (False, True, False, False),
    "gated": (True, True, True, True),
    "gated, no g": (True, True, True, False),
    "gated, no tx": (True, False, True, True),
    "gated, no tx, no g": (True, False, True, False),
    "gated, no tb": (True, True, False, True),
    "gated, no tb, no g": (True, True, False, False),
}


def triton_functions():
    pytest.importorskip("triton")
    from fastflow.kernels.activation import backward, forward

    return SimpleNamespace(
        forward=forward.forward,
        backward=backward.backward,
        dual_forward=forward.dual_forward,
        dual_backward=backward.dual_backward,
    )


def draw(shape: tuple[int, ...], dtype: torch.dtype, layout: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)

    def randn(*sizes: int) -> Tensor:
        return (2 * torch.randn(sizes, generator=generator)).to(DEVICE, dtype)

    if layout == "half":
        return randn(*shape[:-1], 2 * shape[-1])[..., shape[-1] :]
    if layout == "transposed":
        return randn(*shape[:-2], shape[-1], shape[-2]).mT
    if layout == "expanded":
        return randn(*shape[:-2], 1, shape[-1]).expand(shape)
    return randn(*shape)


def size(x: Tensor) -> float:
    return max(1.0, x.detach().abs().max().item()) if x.numel() else 1.0


def check(functions, kind, given, shape, dtype, K=1, layout="contiguous"):
    """Compare all four functions with the reference, differentiated by autograd in float64."""
    has_b, has_tx, has_tb, has_g = GIVEN[given]
    x = draw(shape, dtype, layout, 0)
    b = draw(shape, dtype, layout, 1) if has_b else None
    tx = draw((K, *shape), dtype, layout, 2) if has_tx else None
    tb = draw((K, *shape), dtype, layout, 3) if has_tb else None
    g = draw(shape, dtype, "contiguous", 4) if has_g else None
    h = draw((K, *shape), dtype, "contiguous", 5)
    wants, t_wants = (True, has_b), (has_tx, has_tb)

    leaves = [None if y is None else y.double().clone().requires_grad_() for y in (x, b, tx, tb)]
    out, t_out = reference.dual_forward(*leaves, kind)
    loss = (t_out * h.double()).sum() + (0 if g is None else (out * g.double()).sum())
    primal = [y for y in leaves[:2] if y is not None]
    every = [y for y in leaves if y is not None]
    joint = torch.autograd.grad(loss, every, retain_graph=True, materialize_grads=True)
    each = [torch.autograd.grad(out, primal, one.double(), retain_graph=True) for one in h]

    tolerance = TOLERANCE[dtype]

    def compare(name, actual, expected):
        actual = [y for y in actual if y is not None]
        assert len(actual) == len(expected), name
        for y, z in zip(actual, expected):
            assert y.dtype == dtype
            assert y.is_contiguous()
            torch.testing.assert_close(y.double(), z.detach(), rtol=0, atol=tolerance * size(z), msg=name)

    compare("forward", [functions.forward(x, b, kind)], [out])
    compare("dual forward", functions.dual_forward(x, b, tx, tb, kind), [out, t_out])
    compare("backward", functions.backward(h[0], x, b, kind, wants), each[0])
    compare("backward of K", functions.backward(h, x, b, kind, wants), [torch.stack(one) for one in zip(*each)])
    compare("dual backward", functions.dual_backward(g, h, x, b, tx, tb, kind, wants, t_wants), joint)
    for i, j in itertools.product(range(2), range(2)):  # what is not wanted is not computed, and the rest is the same
        some = tuple(w and i == n for n, w in enumerate(wants)), tuple(w and j == n for n, w in enumerate(t_wants))
        got = functions.dual_backward(g, h, x, b, tx, tb, kind, *some)
        all_wanted = iter(joint)
        expected = [next(all_wanted) if y is not None else None for y in leaves]
        compare("part", got, [z for z, w in zip(expected, (*some[0], *some[1])) if w])


@pytest.mark.parametrize("kind", reference.KINDS)
def test_reference_is_pytorchs(kind):
    x = draw((4, 50), torch.float64, "contiguous", 0)
    b, t, tb = (draw((4, 50), torch.float64, "contiguous", i) for i in (1, 2, 3))
    assert_close(reference.forward(x, None, kind), OWN[kind](x), 1e-15)
    expected = torch.func.jvp(lambda x, b: OWN[kind](x) * b, (x, b), (t, tb))
    actual = reference.dual_forward(x, b, t[None], tb[None], kind)
    for y, z in zip(tensors(actual), expected):
        assert_close(y.view_as(z), z, 1e-14)


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("K", [1, 3])
def test_aten(kind, given, K):
    check(aten, kind, given, (3, 7), torch.float64, K)


@pytest.mark.parametrize("given", ["activation", "gated"])
@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_aten_dtypes(kind, given, dtype):
    check(aten, kind, given, (4, 100), dtype, 2)
    check(aten, kind, given, (4, 100), dtype, 1)


@pytest.mark.parametrize("layout", ["half", "transposed", "expanded"])
@pytest.mark.parametrize("kind", reference.KINDS)
def test_aten_layouts(kind, layout):
    check(aten, kind, "gated", (2, 5, 6), torch.float64, 2, layout)
    check(aten, kind, "activation", (2, 5, 6), torch.float64, 1, layout)


@pytest.mark.parametrize("layout", ["contiguous", "half"])
@pytest.mark.parametrize("kind", reference.KINDS)
def test_aten_in_many_blocks(kind, layout, monkeypatch):
    monkeypatch.setattr(blocks, "_CPU_BLOCK", 64)
    for width in (1, 63, 100):
        check(aten, kind, "gated", (7, width), torch.float64, 2, layout)
        check(aten, kind, "activation", (7, width), torch.float64, 1, layout)


@pytest.mark.parametrize("lead", [(6,), (2, 3)])
def test_halves_of_one_tensor_are_not_copied(lead):
    halves = draw((*lead, 20), torch.float32, "contiguous", 0).chunk(2, -1)
    rows = as_rows(halves, len(lead) + 1)
    assert [row.data_ptr() for row in rows] == [half.data_ptr() for half in halves]
    assert all(row.shape == (6, 10) for row in rows)


@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_far_from_zero(kind, dtype):
    """Every derivative saturates, where powers of x overflow in float32."""
    x = torch.tensor([-3e18, -1e13, -1e6, -1000.0, 1000.0, 1e6, 1e13, 3e18], dtype=dtype)
    g, zero = torch.ones_like(x), torch.zeros_like(x)
    one = (x > 0).to(dtype)
    assert torch.equal(aten.forward(x, None, kind), x * one)
    assert torch.equal(aten.backward(g, x, None, kind, (True, False))[0], one)
    out, t_out = aten.dual_forward(x, None, g[None], None, kind)
    assert torch.equal(out, x * one)
    assert torch.equal(t_out[0], one)
    dx, _, dtx, _ = aten.dual_backward(None, g[None], x, None, g[None], None, kind, (True, False), (True, False))
    assert torch.equal(dx, zero)
    assert torch.equal(dtx[0], one)


KERNEL_SHAPES = [(1,), (63,), (2, 100), (1, 1025), (5, 1), (0, 4), (3, 0)]


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("kind", reference.KINDS)
def test_kernels(kind, given):
    check(triton_functions(), kind, given, (2, 21), torch.float32, 2)


@pytest.mark.parametrize("shape", KERNEL_SHAPES)
def test_kernel_shapes(shape):
    check(triton_functions(), "gelu_tanh", "gated", shape, torch.float32)


@pytest.mark.parametrize("layout", ["half", "transposed", "expanded"])
@pytest.mark.parametrize("width", [10, 600])
def test_kernel_layouts(layout, width):
    check(triton_functions(), "silu", "gated", (3, width), torch.float32, 2, layout)


@pytest.mark.parametrize("kind", reference.KINDS)
def test_kernels_in_float16(kind):
    check(triton_functions(), kind, "gated", (2, 50), torch.float16, 2)


@pytest.mark.parametrize("kind", reference.KINDS)
def test_kernels_far_from_zero(kind):
    functions = triton_functions()
    x = torch.tensor([-3e18, -1e13, -1000.0, 1000.0, 1e13, 3e18], device=DEVICE)
    g = torch.ones_like(x)
    dx, _, dtx, _ = functions.dual_backward(g, g[None], x, None, g[None], None, kind, (True, False), (True, False))
    assert torch.equal(dx, (x > 0).float())
    assert torch.equal(dtx[0], (x > 0).float())


@pytest.mark.parametrize("kind", reference.KINDS)
@pytest.mark.parametrize("implementation", ["aten", "triton"])
def test_derivatives_do_not_cancel_in_the_tails(kind, implementation):
    functions = aten if implementation == "aten" else triton_functions()
    x = torch.linspace(-8, 8, 999, device=DEVICE)
    one = torch.ones_like(x)
    dx, _, dtx, _ = functions.dual_backward(
        None, one[None], x, None, one[None], None, kind, (True, False), (True, False)
    )
    leaf = x.double().requires_grad_()
    _, slope = reference.dual_forward(leaf, None, one.double()[None], None, kind)
    (curvature,) = torch.autograd.grad(slope.sum(), leaf)
    torch.testing.assert_close(dtx.double(), slope.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(dx.double(), curvature, rtol=0, atol=1e-6)
