"""The inputs of attention: layouts, shapes, dtypes, masks and backends, and the messages of those it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp
from torch.nn.attention.bias import causal_upper_left

import fastflow as ff
from fastflow import _backend
from fastflow.ops.attention import attention, attention_jvp
from tests.compare import DEVICE, assert_close, math_attention, relative_l2

BACKENDS = ["auto", "reference", "triton"]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    x = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.to(DEVICE, dtype)


def _fused_qkv() -> tuple[Tensor, ...]:
    return tuple(draw(2, 5, 3, 4, 6).permute(2, 0, 3, 1, 4))


def _transposed() -> tuple[Tensor, ...]:
    return tuple(draw(2, n, 4, 6, seed=n).transpose(1, 2) for n in (5, 7, 7))


def _strided_rows() -> tuple[Tensor, ...]:
    return tuple(draw(2, 4, 5, 12, seed=i)[..., ::2] for i in range(3))


LAYOUTS = {
    "fused qkv": (_fused_qkv(), {}),
    "transposed": (_transposed(), {}),
    "expanded": ((draw(2, 4, 5, 6), draw(1, 1, 7, 6), draw(2, 1, 7, 3)), {}),
    "strided rows": (_strided_rows(), {}),
    "two dimensions": ((draw(5, 6), draw(7, 6), draw(7, 3)), {}),
    "three dimensions": ((draw(4, 5, 6), draw(4, 7, 6), draw(4, 7, 6)), {}),
    "five dimensions": ((draw(2, 3, 2, 5, 6), draw(2, 3, 2, 7, 6), draw(2, 3, 2, 7, 6)), {}),
    "broadcast batch": ((draw(2, 3, 2, 5, 6), draw(3, 1, 2, 7, 6)[:1], draw(1, 3, 2, 7, 6)), {}),
    "one key head": ((draw(2, 4, 5, 6), draw(2, 1, 7, 6), draw(2, 1, 7, 6)), {}),
    "gqa": ((draw(1, 6, 5, 4), draw(1, 2, 7, 4), draw(1, 2, 7, 4)), {"enable_gqa": True}),
    "five dimensions, gqa": ((draw(2, 3, 2, 5, 6), draw(2, 3, 1, 7, 6), draw(2, 3, 1, 7, 6)), {"enable_gqa": True}),
    "causal, more queries": ((draw(1, 2, 9, 6), draw(1, 2, 4, 6), draw(1, 2, 4, 6)), {"is_causal": True}),
    "causal, more keys": ((draw(1, 2, 4, 6), draw(1, 2, 9, 6), draw(1, 2, 9, 6)), {"is_causal": True}),
    "scale": ((draw(1, 2, 4, 6), draw(1, 2, 9, 6), draw(1, 2, 9, 6)), {"scale": 2}),
    "mask of keys": ((draw(2, 2, 5, 6), draw(2, 2, 7, 6), draw(2, 2, 7, 6)), {"attn_mask": draw(7)}),
    "mask of batches": ((draw(2, 2, 5, 6), draw(2, 2, 7, 6), draw(2, 2, 7, 6)), {"attn_mask": draw(2, 1, 1, 7) > 0}),
    "mask, five dimensions": (
        (draw(2, 3, 2, 5, 6), draw(2, 3, 2, 7, 6), draw(2, 3, 2, 7, 6)),
        {"attn_mask": draw(3, 1, 5, 7) > 0},
    ),
    "mask, gqa": (
        (draw(1, 6, 5, 4), draw(1, 2, 7, 4), draw(1, 2, 7, 4)),
        {"attn_mask": draw(1, 6, 5, 7), "enable_gqa": True},
    ),
}


def layout_of(layout: str) -> tuple[tuple[Tensor, ...], dict[str, Any], Callable[..., tuple[Tensor, ...]]]:
    """Tensors, options, and what the caller does to the tensors first: forward AD has no dual of an expanded one."""
    x, options = LAYOUTS[layout]
    if layout == "expanded":
        return x, options, lambda q, k, v: (q, k.expand(2, 4, 7, 6), v.expand(2, 4, 7, 3))
    return x, options, lambda *x: x


def same_strides(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy with x's gaps."""
    return torch.empty_strided(x.shape, x.stride(), dtype=dtype, device=x.device).copy_(x)


@pytest.mark.parametrize("backend", ["auto", "reference", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, backend: str) -> None:
    x, options, view = layout_of(layout)
    dtype, tolerance = (torch.float32, 1e-5) if backend == "triton" else (torch.float64, 1e-10)
    t = tuple(torch.randn_like(y) for y in x)
    weight: list[Tensor] = []

    def run(f: Any, dtype: torch.dtype, **more: Any) -> list[Tensor]:
        leaves = [same_strides(y, dtype).requires_grad_() for y in (*x, *t)]
        outs = jvp(lambda *y: f(*view(*y), **options, **more), tuple(leaves[:3]), tuple(leaves[3:]))
        weight[:] = weight or [torch.randn_like(out) for out in outs]
        loss = sum((out * w).sum() for out, w in zip(outs, weight))
        plain = f(*view(*leaves[:3]), **options, **more)
        return [*outs, *torch.autograd.grad(loss, leaves), plain, *torch.autograd.grad(plain.sum(), leaves[:3])]

    one_key_head = {"enable_gqa": True} if layout == "one key head" else {}
    truth = run(math_attention, torch.float64, **one_key_head)
    for a, e in zip(run(attention, dtype, backend=backend), truth, strict=True):
        assert_close(a, e, tolerance, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_as_torch(layout: str) -> None:
    """Shape, dtype and value of the function whose signature this is; its math backend, which takes every layout."""
    x, options, view = layout_of(layout)
    x = view(*x)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(*x, **options)
    assert_close(attention(*x, **options), expected, 1e-10, layout)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_single_key(backend: str) -> None:
    """The softmax of one score is one: the output is the value, and query and key have no influence."""
    x, t = (
        [draw(2, 4, 1, 6, seed=i).requires_grad_() for i in range(3)],
        [draw(2, 4, 1, 6, seed=i) for i in range(3, 6)],
    )
    out, tangent = jvp(lambda *x: attention(*x, backend=backend), tuple(x), tuple(t))
    grads = torch.autograd.grad(out.sum() + tangent.square().sum(), x)
    zero = torch.zeros_like(x[0])
    for a, e in zip((out, tangent, *grads), (x[2], t[2], zero, zero, torch.ones_like(zero))):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-14)


@pytest.mark.parametrize("num_tangents", [None, 1, 3])
@pytest.mark.parametrize("given", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1)])
def test_attention_jvp(given: tuple[int, ...], num_tangents: int | None) -> None:
    x = (draw(2, 3, 4, 5, 6), draw(2, 3, 2, 7, 6), draw(2, 3, 2, 7, 4))
    lead = () if num_tangents is None else (num_tangents,)
    t = [draw(*lead, *y.shape, seed=i + 9) if g else None for i, (y, g) in enumerate(zip(x, given))]
    out, tangent = attention_jvp(*x, *t, enable_gqa=True)
    f = lambda *y: math_attention(*y, enable_gqa=True)  # noqa: E731
    full = [torch.zeros(*lead, *y.shape, dtype=y.dtype) if ty is None else ty for y, ty in zip(x, t)]
    assert_close(out, f(*x), 1e-10)
    if num_tangents is None:
        assert_close(tangent, jvp(f, x, tuple(full))[1], 1e-10)
    else:
        assert_close(tangent, torch.stack([jvp(f, x, ty)[1] for ty in zip(*full)]), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("backend", BACKENDS)
def test_low_precision(dtype: torch.dtype, backend: str) -> None:
    """At most twice (gradients three times) the error of PyTorch's own attention in the same dtype, spelled out."""
    reason = _backend.why_not_triton(torch.empty(0, dtype=dtype, device=DEVICE))
    if backend == "triton" and reason is not None:
        pytest.skip(reason)
    x, t, w = ([draw(1, 2, 33, 16, seed=s + i, dtype=dtype) for i in range(3)] for s in (0, 10, 20))

    def run(f: Any, to: torch.dtype) -> list[Tensor]:
        leaves = [y.to(to).requires_grad_() for y in (*x, *t)]
        out, tangent = jvp(f, tuple(leaves[:3]), tuple(leaves[3:]))
        grads = torch.autograd.grad((out * w[0].to(to)).sum() + (tangent * w[1].to(to)).sum(), leaves)
        return [out, tangent, *grads]

    actual = run(lambda *y: attention(*y, backend=backend), dtype)
    same_dtype, truth = run(math_attention, dtype), run(math_attention, torch.float64)
    for i, (a, s, e) in enumerate(zip(actual, same_dtype, truth)):
        assert a.dtype == dtype
        assert relative_l2(a, e) <= (2 if i < 2 else 3) * relative_l2(s, e) + torch.finfo(dtype).eps, i


def test_float32_tangents_beside_bfloat16_primals() -> None:
    x = [draw(1, 2, 9, 8, seed=i, dtype=torch.bfloat16) for i in range(3)]
    t = [draw(1, 2, 9, 8, seed=i + 5, dtype=torch.float32) for i in range(3)]
    out, tangent = attention_jvp(*x, *t, backend="reference")
    assert (out.dtype, tangent.dtype) == (torch.bfloat16, torch.float32)
    expected = jvp(math_attention, tuple(y.double() for y in x), tuple(y.double() for y in t))[1]
    assert_close(tangent, expected, 1e-5)


def test_a_fully_masked_row_gives_zeros_and_zero_derivatives() -> None:
    mask = torch.ones(5, 7, dtype=torch.bool, device=DEVICE)
    mask[2] = False
    x = [draw(1, 2, n, 6, seed=n).requires_grad_() for n in (5, 7, 7)]
    out, tangent = attention_jvp(*x, *(torch.ones_like(y) for y in x), attn_mask=mask)
    (out.sum() + tangent.square().sum()).backward()
    for y in (out, tangent, x[0].grad):
        assert torch.equal(y[:, :, 2], torch.zeros_like(y[:, :, 2]))
        assert y.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4)])
def test_empty(shape: tuple[int, ...]) -> None:
    q = torch.randn(shape, requires_grad=True)
    k = torch.randn(*shape[:2], 3, shape[3])
    out, tangent = jvp(lambda q: attention(q, k, k), (q,), (torch.ones_like(q),))
    assert out.shape == tangent.shape == shape
    (out.sum() + tangent.sum()).backward()
    assert q.grad is not None


@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"attn_mask": draw(1, 1, 1, 19, dtype=torch.float32) > 0}]
)
def test_triton_backend(options: dict[str, Any], device: torch.device) -> None:
    """The kernels behind the same function: value, tangent and joint backward against float64."""
    x, t, w = ([draw(1, 4, 17, 16, seed=s), *(draw(1, 2, 19, 16, seed=s + i) for i in (1, 2))] for s in (0, 10, 20))
    w[1] = draw(1, 4, 17, 16, seed=22)

    def run(f: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [y.to(device, dtype).requires_grad_() for y in (*x, *t)]
        out, tangent = jvp(f, tuple(leaves[:3]), tuple(leaves[3:]))
        weights = [y.to(out) for y in w[:2]]
        grads = torch.autograd.grad((out * weights[0]).sum() + (tangent * weights[1]).sum(), leaves)
        plain = f(*leaves[:3])
        return [out, tangent, *grads, plain, *torch.autograd.grad((plain * weights[0]).sum(), leaves[:3])]

    options = {name: y.to(device) if isinstance(y, Tensor) else y for name, y in options.items()}
    actual = run(lambda *y: attention(*y, enable_gqa=True, backend="triton", **options), torch.float32)
    for a, e in zip(actual, run(lambda *y: math_attention(*y, enable_gqa=True, **options), torch.float64)):
        assert_close(a, e, 1e-5)


Q, K = torch.zeros(2, 4, 5, 8), torch.zeros(2, 4, 7, 8)
BAD_INPUT: list[tuple[type[Exception], str, tuple[Any, ...], dict[str, Any]]] = [
    (TypeError, r"query must be a tensor, got list", ([1.0], K, K), {}),
    (TypeError, r"key must have a floating point dtype, got torch.int64", (Q, K.long(), K), {}),
    (TypeError, r"value must have the dtype of query, torch.float32, got torch.float64", (Q, K, K.double()), {}),
    (ValueError, r"query must be \[..., H, N, D\], got shape \(8,\)", (Q[0, 0, 0], K, K), {}),
    (ValueError, r"key must have as many dimensions as query, 4, got shape \(4, 7, 8\)", (Q, K[0], K), {}),
    (ValueError, r"key must be on the device of query, cpu, got meta", (Q, K.to("meta"), K), {}),
    (ValueError, r"key must have the head dimension of query, 8, got 4", (Q, K[..., :4], K), {}),
    (ValueError, r"value must be as long as key, 7, got 6", (Q, K, K[:, :, :6]), {}),
    (ValueError, r"query must have a head dimension of at least 1", (Q[..., :0], K[..., :0], K), {}),
    (ValueError, r"value must have as many heads as key, 4, got 2", (Q, K, K[:, :2]), {}),
    (ValueError, r"as many heads as query, 4, got 2; enable_gqa=True", (Q, K[:, :2], K[:, :2]), {}),
    (ValueError, r"heads that divides query's, 4, got 3", (Q, K[:, :3], K[:, :3]), {"enable_gqa": True}),
    (ValueError, r"broadcastable leading dimensions", (Q, K.repeat(2, 1, 1, 1)[:3], K), {}),
    (TypeError, r"attn_mask must be a tensor, got float", (Q, K, K), {"attn_mask": 1.0}),
    (TypeError, r"attn_mask must be bool .* or floating point", (Q, K, K), {"attn_mask": torch.ones(5, 7).int()}),
    (ValueError, r"attn_mask must be broadcastable to \(2, 4, 5, 7\)", (Q, K, K), {"attn_mask": torch.ones(5, 6)}),
    (ValueError, r"attn_mask must be broadcastable", (Q, K, K), {"attn_mask": torch.ones(1, 2, 4, 5, 7)}),
    (ValueError, r"attn_mask must be on the device", (Q, K, K), {"attn_mask": torch.ones(5, 7, device="meta")}),
    (ValueError, r"CausalBias of size \(5, 7\), got size \(7, 5\)", (Q, K, K), {"attn_mask": causal_upper_left(7, 5)}),
    (TypeError, r"is_causal must be a bool, got int", (Q, K, K), {"is_causal": 1}),
    (TypeError, r"enable_gqa must be a bool, got str", (Q, K, K), {"enable_gqa": "no"}),
    (TypeError, r"scale must be a number, got str", (Q, K, K), {"scale": "1"}),
    (TypeError, r"scale must be a number, got a tensor of shape \(1,\)", (Q, K, K), {"scale": torch.ones(1)}),
    (TypeError, r"differentiated; pass scale.detach", (Q, K, K), {"scale": torch.ones((), requires_grad=True)}),
    (TypeError, r"scale must be a number, got bool", (Q, K, K), {"scale": True}),
    (ValueError, r"scale must be finite, got inf", (Q, K, K), {"scale": torch.tensor(torch.inf)}),
    (ValueError, r"scale must be finite, got nan", (Q, K, K), {"scale": float("nan")}),
    (ValueError, r"scale must be within the range of float32, .* got 1e\+300", (Q.float(),) * 3, {"scale": 1e300}),
    (ValueError, r"scale must be within the range of float32", (Q.half(),) * 3, {"scale": -1e39, "is_causal": True}),
    (TypeError, r"dropout_p must be a number", (Q, K, K), {"dropout_p": None}),
    (NotImplementedError, r"dropout_p must be 0, got 0.1.*Set the model's", (Q, K, K), {"dropout_p": 0.1}),
    (ValueError, r"backend must be one of", (Q, K, K), {"backend": "cuda"}),
    (ValueError, r"backend='triton' cannot .*float64", (Q.double(), K.double(), K.double()), {"backend": "triton"}),
    (
        ValueError,
        r"backend='triton' cannot serve attention",
        (torch.zeros(1, 1, 2, 300), torch.zeros(1, 1, 2, 300), torch.zeros(1, 1, 2, 8)),
        {"backend": "triton"},
    ),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "args", "options"), BAD_INPUT)
def test_bad_input(
    error: type[Exception],
    message: str,
    args: tuple[Any, ...],
    options: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("reached an op")

    monkeypatch.setattr("fastflow.ops._twice_differentiable.Step.__call__", never)
    with pytest.raises(error, match=message):
        attention(*args, **options)
    if error is not NotImplementedError and "dropout" not in message:
        with pytest.raises(error, match=message):
            attention_jvp(*args, args[0], **options)


BAD_TANGENTS: list[tuple[type[Exception], str, tuple[Any, ...]]] = [
    (ValueError, r"must be a tensor, got None for all three", (None, None, None)),
    (TypeError, r"key_tangent must be a tensor, got float", (None, 1.0, None)),
    (TypeError, r"query_tangent must have dtype torch.float32, got torch.float64", (Q.double(), None, None)),
    (ValueError, r"value_tangent must be on the device of value, cpu, got meta", (None, None, K.to("meta"))),
    (ValueError, r"query_tangent must have the shape of query, .* got shape \(4, 5, 8\)", (Q[0], None, None)),
    (ValueError, r"query_tangent must have the shape of query, .* got shape \(0, 2", (Q[None][:0], None, None)),
    (ValueError, r"the same leading axis K, or none, got", (Q[None], K, None)),
]  # fmt: skip


@pytest.mark.parametrize(("error", "message", "tangents"), BAD_TANGENTS)
def test_bad_tangents(error: type[Exception], message: str, tangents: tuple[Any, ...]) -> None:
    with pytest.raises(error, match=message):
        attention_jvp(Q, K, K, *tangents)


def test_public_names() -> None:
    assert ff.attention is attention
    assert ff.attention_jvp is attention_jvp
    assert ff.replace_sdpa is ff.replace_ops
