"""Inputs that the activations accept, refuse, keep and compile."""

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vjp, vmap

from fastflow import gelu, silu, swiglu
from fastflow.kernels.activation import aten
from tests.compare import DEVICE, assert_close

FUNCTIONS = {"gelu": gelu, "gelu_tanh": lambda x, **o: gelu(x, "tanh", **o), "silu": silu}
OWN = {"gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"), "silu": F.silu}


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def tangent_and_gradients(f, x, t):
    """The tangent of f at x, and the gradients of a loss of it in x and t."""

    def loss(x, t):
        return jvp(f, (x,), (t,))[1].square().sum()

    return jvp(f, (x,), (t,))[1], *grad(loss, (0, 1))(x, t)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_numerically(name):
    def dual(x, t):
        return jvp(FUNCTIONS[name], (x,), (t,))

    x, t = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
    assert gradcheck(FUNCTIONS[name], x, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(FUNCTIONS[name], x, check_fwd_over_rev=True)
    assert gradcheck(dual, (x, t), check_batched_grad=True)


def test_swiglu_numerically():
    a, b = draw(2, 3).requires_grad_(), draw(2, 3, seed=1).requires_grad_()
    assert gradcheck(swiglu, (a, b), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(swiglu, (a, b), check_fwd_over_rev=True)


LAYOUTS = {
    "scalar": ((1,), lambda x: x[0]),
    "one": ((1,), lambda x: x),
    "empty": ((3, 0), lambda x: x),
    "odd": ((5, 63), lambda x: x),
    "transposed": ((4, 6), lambda x: x.mT),
    "permuted": ((2, 3, 4, 5), lambda x: x.permute(0, 2, 1, 3)),
    "expanded": ((1, 7), lambda x: x.expand(3, 7)),
    "gaps": ((4, 10), lambda x: x[:, ::2]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_layouts(name, layout):
    shape, view = LAYOUTS[layout]
    x, t = draw(*shape), draw(*shape, seed=1)
    actual, expected = (tangent_and_gradients(lambda x, f=f[name]: f(view(x)), x, t) for f in (FUNCTIONS, OWN))
    for a, b in zip(actual, expected):
        assert_close(a, b, 1e-13)


def test_halves_of_one_tensor():
    def halves(f):
        return lambda y: f(*y.chunk(2, -1))

    y, t = draw(2, 5, 6), draw(2, 5, 6, seed=1)
    ours, own = halves(swiglu), halves(lambda a, b: F.silu(a) * b)
    for a, b in zip(tangent_and_gradients(ours, y, t), tangent_and_gradients(own, y, t)):
        assert_close(a, b, 1e-13)


def test_mixed_dtypes_are_promoted():
    a, b = draw(3, 4, dtype=torch.bfloat16), draw(3, 4, dtype=torch.float32, seed=1)
    assert swiglu(a, b).dtype == swiglu(b, a).dtype == torch.float32
    out, t_out = jvp(swiglu, (a, b), (a, b))
    assert out.dtype == t_out.dtype == torch.float32


@pytest.mark.parametrize("name", FUNCTIONS)
def test_autocast_changes_nothing(name):
    x = draw(3, 4, dtype=torch.float32)
    expected = tangent_and_gradients(FUNCTIONS[name], x, x)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        actual = tangent_and_gradients(FUNCTIONS[name], x, x)
    for a, b in zip(actual, expected):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_sixteen_bit_results_are_rounded_once(name, dtype):
    x, t = draw(8, 50, dtype=dtype), draw(8, 50, dtype=dtype, seed=1)
    wide = tangent_and_gradients(FUNCTIONS[name], x.double(), t.double())
    unit = torch.finfo(dtype).eps
    for i, (a, b) in enumerate(zip(tangent_and_gradients(FUNCTIONS[name], x, t), wide)):
        assert_close(a.double(), b, unit if i else unit / 2)  # the cotangent of the gradients is rounded too


def test_tangents_keep_their_operands_and_nothing_else():
    kept = []
    x, t = draw(4, 5).requires_grad_(), draw(4, 5, seed=1).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y) or y, lambda y: y):
        for f in FUNCTIONS.values():
            jvp(f, (x,), (t,))
    operands = {x.untyped_storage().data_ptr(), t.untyped_storage().data_ptr()}
    assert kept
    assert {y.untyped_storage().data_ptr() for y in kept} == operands


def test_plain_calls_are_pytorchs():
    x = draw(4, 5, dtype=torch.float32).requires_grad_()
    for name, f in FUNCTIONS.items():
        assert torch.equal(f(x), OWN[name](x))
        assert f(x).grad_fn.name() == OWN[name](x).grad_fn.name()


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled(name):
    def step(x, t):
        out, t_out = jvp(FUNCTIONS[name], (x,), (t,))
        return out.sum() + t_out.square().sum()

    def gradients(f, x, t):
        leaves = x.clone().requires_grad_(), t.clone().requires_grad_()
        return torch.autograd.grad(f(*leaves), leaves)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=True)
    for size in (3, 5):
        x, t = draw(size, 7), draw(size, 7, seed=1)
        for a, b in zip(gradients(compiled, x, t), gradients(step, x, t)):
            assert_close(a, b, 1e-12)


def test_compiled_with_many_tangents_and_in_grad():
    x, ts = draw(3, 4), draw(2, 3, 4, seed=1)

    def many(x, ts):
        return vmap(lambda t: jvp(gelu, (x,), (t,))[1])(ts)

    def inside_grad(x):
        return grad(lambda x: silu(x).square().sum())(x)

    for f, args in ((many, (x, ts)), (inside_grad, (x,))):
        assert_close(torch.compile(f, backend="aot_eager", fullgraph=True)(*args), f(*args), 1e-12)


def test_a_third_derivative_is_refused():
    x = draw(3)
    with pytest.raises(NotImplementedError, match="activation has no third derivative"):
        grad(lambda x: grad(lambda x: jvp(gelu, (x,), (x,))[1].sum())(x).sum())(x)
    with pytest.raises(NotImplementedError, match="activation does not support forward-mode AD inside forward-mode"):
        jvp(lambda x: jvp(gelu, (x,), (x,))[1], (x,), (x,))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x: gelu(x, "erf"), ValueError, "approximate must be one of 'none', 'tanh', got 'erf'"),
        (lambda x: gelu(x, backend="cuda"), ValueError, "backend must be one of"),
        (lambda x: gelu([1.0]), TypeError, "x must be a tensor, got list"),
        (lambda x: silu(x.long()), TypeError, "x must have a floating point dtype, got torch.int64"),
        (lambda x: swiglu(x.cfloat(), x), TypeError, "a must have a floating point dtype, got torch.complex64"),
        (lambda x: swiglu(x, x[:2]), ValueError, r"b must have the shape of a, \(3, 4\), got shape \(2, 4\)"),
        (lambda x: swiglu(x, 2.0), TypeError, "b must be a tensor, got float"),
        (lambda x: silu(x.to_sparse()), TypeError, "x must be a dense tensor"),
        (lambda x: silu(x, backend="triton"), ValueError, "backend='triton' cannot serve activation: .*not float64"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(draw(3, 4))


def test_many_cotangents_share_the_slope(monkeypatch):
    calls = []
    own = aten._curve
    monkeypatch.setattr(aten, "_curve", lambda *args, **options: calls.append(args) or own(*args, **options))
    x, gs = draw(3, 4), draw(5, 3, 4, seed=1)
    actual = vmap(vjp(gelu, x)[1])(gs)[0]
    assert len(calls) == 1
    assert_close(actual, vmap(vjp(F.gelu, x)[1])(gs)[0], 1e-14)
