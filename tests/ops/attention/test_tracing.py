"""Attention without values, or with symbols for lengths: meta and fake tensors, torch.compile, export, jit.trace."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.func import grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.attention.bias import causal_upper_left

from fastflow.ops.attention import attention, attention_jvp
from tests.compare import assert_close, math_attention

Loss = Callable[[Callable[..., Tensor], Tensor, Tensor, Tensor], Any]


def operands(num_queries: int, num_keys: int, seed: int = 0) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (1, 2, num_queries, 6), (1, 2, num_keys, 6), (1, 2, num_keys, 4)
    return tuple(torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)


def everything(x: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    leaves = [y.clone().requires_grad_() for y in (*x, *x)]
    outs = jvp(lambda *y: attention(*y, **options), tuple(leaves[:3]), tuple(leaves[3:]))
    plain = attention(*leaves[:3], **options)
    grads = torch.autograd.grad(outs[0].sum() + outs[1].sum(), leaves)
    mapped = vmap(grad(lambda q: attention(q, *x[1:], **options).sum()))(torch.stack([x[0], x[0]]))
    hessian = jvp(grad(lambda q: attention(q, *x[1:], **options).sum()), (x[0],), (x[0],))
    return [*outs, plain, *grads, *torch.autograd.grad(plain.sum(), leaves[:3]), mapped, *hessian]


OPTIONS = {
    "plain": {},
    "causal": {"is_causal": True},
    "reference": {"backend": "reference"},
    "bias": {"attn_mask": causal_upper_left(5, 40)},
}


@pytest.mark.parametrize("keys", [9, 40])  # short rows, and long ones
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["meta", "default device", "fake"])
def test_shapes_without_values(kind: str, name: str, keys: int) -> None:
    options = {"attn_mask": causal_upper_left(5, keys)} if name == "bias" else OPTIONS[name]
    real = everything(operands(5, keys), **options)
    if kind == "meta":
        traced = everything(tuple(y.to("meta") for y in operands(5, keys)), **options)
    elif kind == "fake":
        with FakeTensorMode():
            shapes = (1, 2, 5, 6), (1, 2, keys, 6), (1, 2, keys, 4)
            traced = everything(tuple(torch.randn(s, dtype=torch.float64) for s in shapes), **options)
    else:
        with torch.device("meta"):
            shapes = (1, 2, 5, 6), (1, 2, keys, 6), (1, 2, keys, 4)
            traced = everything(tuple(torch.randn(s, dtype=torch.float64) for s in shapes), **options)
    for a, e in zip(traced, real, strict=True):
        assert (a.shape, a.dtype, a.stride()) == (e.shape, e.dtype, e.stride())


def test_a_meta_tensor_is_never_computed_on() -> None:
    """A length at which the blocks alone would take minutes."""
    x = tuple(torch.empty(1, 4, 1 << 20, 64, device="meta") for _ in range(3))
    assert jvp(attention, x, x)[1].shape == x[0].shape


def test_fake_tensors_of_a_gpu_need_no_gpu() -> None:
    with FakeTensorMode():
        x = tuple(torch.empty(1, 2, 9, 8, device="cuda") for _ in range(3))
        assert attention(*x).device.type == jvp(attention, x, x)[1].device.type == "cuda"


def test_fake_tensors_outside_their_mode_and_beside_real_ones() -> None:
    with FakeTensorMode() as mode:
        fake = tuple(torch.randn(1, 2, 9, 8) for _ in range(3))
    assert type(jvp(attention, fake, fake)[1]) is type(fake[0])
    mode.allow_non_fake_inputs = True
    with mode:
        assert type(attention(*(torch.randn(1, 2, 9, 8) for _ in range(3)))) is type(fake[0])


def _scaled(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return f(q, k, v, scale=math.log(k.shape[2]) / 8)


def _integer_scale(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return f(q / 8, k, v, scale=k.shape[2])


def _causal_if_long(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return f(q, k, v, is_causal=q.shape[2] > 1)


def _both_masks(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    triangle = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril()
    return f(q, k, v, attn_mask=triangle, **({"is_causal": True} if f is attention else {}))


def _no_keys(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return f(q, k[:, :, :0], v[:, :, :0])


def _tangent(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.cat(jvp(lambda *x: _scaled(f, *x), (q, k, v), (q, k.cos(), v.sin())), -1)


def _mapped_tangents(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return vmap(lambda t: jvp(lambda q: _scaled(f, q, k, v), (q,), (t,))[1])(torch.stack([q, q.cos()]))


def _gradient(f: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return grad(lambda q: _scaled(f, q, k, v).square().sum())(q)


DYNAMIC: dict[str, Loss] = {
    function.__name__[1:]: function
    for function in (_integer_scale, _causal_if_long, _both_masks, _tangent, _mapped_tangents, _gradient)
}


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", DYNAMIC)
def test_compiled_with_dynamic_lengths(name: str) -> None:
    """In one graph, with the gradient; the lengths of the keys are on both sides of D + Dv."""
    loss = DYNAMIC[name]
    compiled = torch.compile(lambda *x: loss(attention, *x), dynamic=True, fullgraph=True, backend="eager")
    for lengths in ((5, 9), (7, 23)):
        results = []
        for f, attend in ((compiled, None), (loss, math_attention)):
            leaves = [y.requires_grad_() for y in operands(*lengths)]
            out = f(*leaves) if attend is None else f(attend, *leaves)
            results.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        for a, e in zip(*results, strict=True):
            assert_close(a, e, 1e-10, name)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_inductor_with_dynamic_lengths() -> None:
    loss = _tangent
    compiled = torch.compile(lambda *x: loss(attention, *x), dynamic=True, fullgraph=True)
    for lengths in ((5, 16), (7, 23)):
        leaves, same = ([y.requires_grad_() for y in operands(*lengths)] for _ in range(2))
        out, expected = compiled(*leaves), loss(math_attention, *same)
        assert_close(out, expected, 1e-10)
        for a, e in zip(*(torch.autograd.grad(y.square().sum(), z) for y, z in ((out, leaves), (expected, same)))):
            assert_close(a, e, 1e-10)


@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_arguments() -> None:
    """A CausalBias, a 0-d scale and no keys at all."""
    bias = causal_upper_left(5, 9)
    x = operands(5, 9)

    def call(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        half = torch.tensor(0.5)
        return attention(q, k, v, attn_mask=bias), attention(q, k, v, scale=half), _no_keys(attention, q, k, v)

    expected = (
        math_attention(*x, is_causal=True),
        math_attention(*x, scale=0.5),
        torch.zeros(1, 2, 5, 4, dtype=torch.float64),
    )
    for a, e in zip(torch.compile(call, backend="aot_eager")(*x), expected):
        assert_close(a, e, 1e-10)


class Exported(nn.Module):
    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.loss(attention, q, k, v)


@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", ["plain", "causal", "tangent"])
def test_exported_with_dynamic_lengths(name: str, strict: bool) -> None:
    """Of queries and keys apart: equal lengths, short rows and long rows run the same program."""
    if name == "tangent" and torch.__version__ < "2.13":
        pytest.skip("PyTorch exports no jvp with dynamic shapes before 2.13")
    losses: dict[str, Loss] = {
        "plain": lambda f, *x: f(*x),
        "causal": lambda f, *x: f(*x, is_causal=True),
        "tangent": lambda f, *x: jvp(f, x, x)[1],
    }
    queries, keys = (torch.export.Dim(name, min=2, max=512) for name in ("queries", "keys"))
    program = torch.export.export(
        Exported(losses[name]), operands(5, 9), dynamic_shapes=({2: queries}, {2: keys}, {2: keys}), strict=strict
    )
    for lengths in ((5, 9), (7, 7), (3, 40)):
        x = operands(*lengths)
        assert_close(program.module()(*x), losses[name](math_attention, *x), 1e-10)


@pytest.mark.parametrize("mode", ["real", "symbolic"])
def test_make_fx(mode: str) -> None:
    x, y = operands(5, 9), operands(5, 9, seed=3)
    traced = make_fx(lambda *x: jvp(attention, x, x)[1], tracing_mode=mode)(*x)
    assert_close(traced(*y), jvp(math_attention, y, y)[1], 1e-10)
    if mode == "symbolic":
        y = operands(7, 40)
        traced = make_fx(lambda *x: attention(*x), tracing_mode=mode)(*operands(5, 23))
        assert_close(traced(*y), math_attention(*y), 1e-10)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("options", [{}, {"is_causal": True}])
def test_a_jit_trace_runs_with_other_lengths(options: dict[str, Any], backend: str) -> None:
    for lengths in ((5, 9), (5, 40)):
        traced = torch.jit.trace(
            lambda *x: attention(*x, backend=backend, **options), operands(*lengths), check_trace=False
        )
        for others in ((5, 9), (8, 11), (50, 70)):
            leaves, same = ([y.requires_grad_() for y in operands(*others)] for _ in range(2))
            out, expected = traced(*leaves), math_attention(*same, **options)
            assert_close(out, expected, 1e-10)
            for a, e in zip(*(torch.autograd.grad(y.square().sum(), z) for y, z in ((out, leaves), (expected, same)))):
                assert_close(a, e, 1e-10)


def test_inference_tensors() -> None:
    """Made under inference_mode, used there and outside."""
    with torch.inference_mode():
        x = operands(5, 9)
        inside = [attention(*x), *jvp(attention, x, x), *attention_jvp(*x, *x)]
        tangent = jvp(math_attention, x, x)[1]  # zero in 2.11, of every function
    outside = [attention(*x), *jvp(attention, x, x), *attention_jvp(*x, *x)]
    y = operands(5, 9)
    expected = [math_attention(*y), *jvp(math_attention, y, y), *jvp(math_attention, y, y)]
    for a, b, e in zip(inside, outside, expected, strict=True):
        assert_close(b, e, 1e-10)
        assert_close(a, tangent if a is inside[2] else e, 1e-10)
    gradient = grad(lambda q: attention(q, *x[1:]).sum())(y[0])
    assert_close(gradient, grad(lambda q: math_attention(q, *y[1:]).sum())(y[0]), 1e-10)
