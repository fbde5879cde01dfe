"""Arguments that PyTorch's own attention takes and that are not plain tensors and floats."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right, causal_upper_left
from torch.nn.attention.flex_attention import create_block_mask

from fastflow.ops.attention import attention, attention_jvp
from tests.compare import DEVICE, assert_close, math_attention

B, H, D = 2, 4, 6


def operands(num_queries: int, num_keys: int, seed: int = 0, heads_k: int = H, width: int = D) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = (B, H, num_queries, D), (B, heads_k, num_keys, D), (B, heads_k, num_keys, width)
    return tuple(torch.randn(s, dtype=torch.float64, generator=generator).to(DEVICE) for s in shapes)


def everything(f: Callable[..., Tensor], x: tuple[Tensor, ...], t: tuple[Tensor, ...]) -> list[Tensor]:
    """The output, its tangent, and the gradients of a loss of both; also under vmap."""
    leaves = [y.clone().requires_grad_() for y in (*x, *t)]
    out, t_out = jvp(f, tuple(leaves[:3]), tuple(leaves[3:]))
    grads = torch.autograd.grad(out.square().sum() + t_out.square().sum(), leaves)
    plain = torch.autograd.grad(f(*leaves[:3]).square().sum(), leaves[:3])
    return [out, t_out, *grads, *plain, vmap(f)(*(torch.stack([y, y.cos()]) for y in x))]


def assert_same(f: Callable[..., Tensor], g: Callable[..., Tensor], x: tuple[Tensor, ...]) -> None:
    t = tuple(y.sin() for y in x)
    for a, e in zip(everything(f, x, t), everything(g, x, t), strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


TRIANGLES = {"upper left": (causal_upper_left, 0), "lower right": (causal_lower_right, 1)}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("lengths", [(16, 16), (5, 9), (9, 5), (1, 7), (7, 1)])
@pytest.mark.parametrize("variant", TRIANGLES)
def test_causal_bias(variant: str, lengths: tuple[int, int], backend: str) -> None:
    """A Tensor subclass over uninitialised memory means a triangle; rows that see no key give zeros."""
    make, is_lower = TRIANGLES[variant]
    mask = torch.ones(lengths, dtype=torch.bool, device=DEVICE).tril(is_lower * (lengths[1] - lengths[0]))
    assert_same(
        lambda *x: attention(*x, attn_mask=make(*lengths), backend=backend),
        lambda *x: math_attention(*x, attn_mask=mask),
        operands(*lengths),
    )


def test_causal_bias_of_attention_jvp_and_with_is_causal() -> None:
    x = operands(5, 9)
    mask = torch.ones(5, 9, dtype=torch.bool, device=DEVICE)
    got = attention_jvp(*x, *x, attn_mask=causal_lower_right(5, 9))
    for a, e in zip(got, jvp(lambda *y: math_attention(*y, attn_mask=mask.tril(4)), x, x)):
        assert_close(a, e, 1e-10)
    both = attention(*x, attn_mask=causal_lower_right(5, 9), is_causal=True)
    assert_close(both, math_attention(*x, is_causal=True), 1e-10)


def test_causal_bias_takes_the_fast_path() -> None:
    """The upper left triangle is is_causal, which needs no memory and skips half the work."""
    from fastflow.ops.attention.problem import canonical

    for make, lengths in ((causal_upper_left, (5, 9)), (causal_lower_right, (9, 9))):
        problem = canonical(*operands(*lengths), make(*lengths), 0.0, False, None, False)
        assert (problem.mask, problem.is_causal) == (None, True)


MASKS = {
    "bool": torch.rand(B, 1, 9, 9, generator=torch.Generator().manual_seed(1)) > 0.3,
    "keys": torch.arange(9).expand(B, 1, 1, 9) > 1,  # the first rows see no key
    "additive": torch.randn(H, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(2)),
    "minus infinity": torch.zeros(9, 9, dtype=torch.float64).index_fill_(0, torch.tensor([0, 4]), -math.inf),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("width", [D, 3])
@pytest.mark.parametrize("name", MASKS)
def test_mask_and_is_causal(name: str, width: int, backend: str) -> None:
    """Both must allow a key, as in PyTorch's fused attention on a CPU."""
    mask = MASKS[name].to(DEVICE)
    triangle = torch.ones(9, 9, dtype=torch.bool, device=DEVICE).tril()
    joint = mask & triangle if mask.dtype == torch.bool else mask.masked_fill(~triangle, -math.inf)
    x = operands(9, 9, width=width)
    assert_same(
        lambda *x: attention(*x, attn_mask=mask, is_causal=True, backend=backend),
        lambda *x: math_attention(*x, attn_mask=joint),
        x,
    )
    if mask.dtype != torch.bool:
        loss = lambda f, m, **options: f(*x, attn_mask=m, **options).square().sum()  # noqa: E731
        got = grad(lambda m: loss(attention, m, is_causal=True))(mask)
        assert_close(got, grad(lambda m: loss(math_attention, m.masked_fill(~triangle, -math.inf)))(mask), 1e-10)
    if DEVICE.type == "cpu" and width == D:
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            expected = F.scaled_dot_product_attention(*x, attn_mask=mask.expand(B, H, 9, 9), is_causal=True)
        assert_close(attention(*x, attn_mask=mask, is_causal=True, backend=backend), expected, 1e-10)


def test_mask_and_is_causal_in_the_kernels(device: torch.device) -> None:
    pytest.importorskip("triton")
    x = tuple(y.to(device, torch.float32) for y in operands(9, 9))
    mask = MASKS["keys"].to(device)
    joint = mask & torch.ones(9, 9, dtype=torch.bool, device=device).tril()
    got = jvp(lambda *y: attention(*y, attn_mask=mask, is_causal=True, backend="triton"), x, x)
    double = tuple(y.double() for y in x)
    for a, e in zip(got, jvp(lambda *y: math_attention(*y, attn_mask=joint), double, double)):
        assert_close(a, e, 1e-5)


SCALARS = [
    np.float64(0.5),
    np.float32(0.5),
    np.float16(0.5),
    torch.tensor(0.5),
    torch.tensor(0.5, dtype=torch.bfloat16),
]
INTEGERS = [2, np.int64(2), torch.tensor(2)]


@pytest.mark.parametrize("number", [*SCALARS, *INTEGERS], ids=lambda x: f"{type(x).__name__} {x}")
def test_numbers(number: Any) -> None:
    x = operands(5, 9)
    assert_same(
        lambda *x: attention(*x, scale=number, dropout_p=0 * number),
        lambda *x: math_attention(*x, scale=float(number)),
        x,
    )
    assert_close(attention_jvp(*x, *x, scale=number)[0], math_attention(*x, scale=float(number)), 1e-10)


def test_a_number_with_a_derivative_is_refused() -> None:
    x = operands(5, 9)
    with pytest.raises(TypeError, match=r"scale .* differentiated; pass scale.detach\(\)"):
        grad(lambda s: attention(*x, scale=s).sum())(torch.tensor(0.5))
    with pytest.raises(TypeError, match=r"scale .* differentiated; pass scale.detach\(\)"):
        jvp(lambda s: attention(*x, scale=s), (torch.tensor(0.5),), (torch.tensor(1.0),))
    with pytest.raises(RuntimeError, match=r"vmap: .*\.item\(\)"):
        vmap(lambda s: attention(*x, scale=s))(torch.ones(3))
    with pytest.raises(NotImplementedError, match=r"dropout_p must be 0, got 0.25"):
        attention(*x, dropout_p=torch.tensor(0.25))


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_no_keys(lead: tuple[int, ...]) -> None:
    """An empty sum: zeros, with a graph, and zero derivatives in every mode."""
    q, kv = torch.randn(*lead, 5, D, dtype=torch.float64), torch.randn(*lead, 0, D, dtype=torch.float64)
    x = (q, kv, kv)
    with sdpa_kernel(SDPBackend.MATH):
        expected = F.scaled_dot_product_attention(*x)
    leaves = [y.clone().requires_grad_() for y in (*x, *x)]
    results = [
        attention(*leaves[:3]),
        *jvp(attention, tuple(leaves[:3]), tuple(leaves[3:])),
        *attention_jvp(*leaves),
        vmap(attention)(*(y[None] for y in leaves[:3]))[0],
        attention(*leaves[:3], attn_mask=torch.ones(5, 0, dtype=torch.bool)),
        attention(*leaves[:3], is_causal=True, backend="reference"),
    ]
    for out in results:
        assert torch.equal(out, expected)
        gradients = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
        given = [g for g in gradients if g is not None]
        assert given
        assert not any(g.any() for g in given)
    assert attention_jvp(*x, q.expand(3, *q.shape))[1].shape == (3, *q.shape)
    hessian = torch.autograd.functional.hessian(lambda q: attention(q, kv, kv).sum(), q)
    assert not hessian.any()


@pytest.mark.parametrize("dtypes", [(0, 0, 1), (1, 0, 1), (0, 1, 0), (2, 0, 1), (0, 0, 0)])
def test_autocast_casts_mixed_dtypes_first(dtypes: tuple[int, ...]) -> None:
    """As PyTorch does: fp32 queries and keys behind a norm, values in bf16; their gradients in their own dtypes."""
    kinds = torch.float32, torch.bfloat16, torch.float16
    x = [y.to(kinds[i]).requires_grad_() for y, i in zip(operands(5, 9), dtypes)]
    t = tuple(y.detach().cos() for y in x)
    rounded = [y.detach().bfloat16().double().requires_grad_() for y in x]
    with torch.autocast(DEVICE.type, torch.bfloat16):
        plain = attention(*x)
        assert plain.dtype == F.scaled_dot_product_attention(*x).dtype == torch.bfloat16
        out, t_out = jvp(attention, tuple(x), t)
        assert attention(*x, attn_mask=torch.zeros(5, 9, requires_grad=True, device=DEVICE)).dtype == torch.bfloat16
    truth = jvp(math_attention, tuple(rounded), tuple(y.double() for y in t))
    assert (out.dtype, t_out.dtype) == (torch.bfloat16, torch.bfloat16)
    for a, e in zip((plain, out, t_out), (truth[0], *truth)):
        assert_close(a, e, 2e-2)
    expected = torch.autograd.grad(truth[0].sum() + truth[1].sum(), rounded)
    for leaf, g, e in zip(x, torch.autograd.grad(out.float().sum() + t_out.float().sum(), x), expected):
        assert g.dtype == leaf.dtype
        assert (g.double() - e).norm() <= 3e-2 * max(e.norm(), 1.0)


def test_mixed_dtypes_are_refused_without_autocast() -> None:
    q, k, v = (y.float() for y in operands(5, 9))
    with pytest.raises(TypeError, match=r"value must have the dtype of query, torch.float32, got torch.bfloat16"):
        attention(q, k, v.bfloat16())
    with (
        torch.autocast(DEVICE.type, torch.bfloat16),
        pytest.raises(TypeError, match=r"key must have the dtype of query, torch.float32, got torch.float64"),
    ):
        attention(q, k.double(), v)


class Plain(Tensor):
    pass


def test_parameters_buffers_and_plain_subclasses_are_tensors() -> None:
    x = operands(5, 9)
    for wrap in (nn.Parameter, nn.Buffer, lambda y: y.as_subclass(Plain)):
        wrapped = tuple(map(wrap, x))
        got = attention(*wrapped), *jvp(attention, wrapped, x), *attention_jvp(*wrapped, *x)
        for a, e in zip(got, (attention(*x), *jvp(attention, x, x) * 2)):
            assert_close(a.as_subclass(Tensor), e, 1e-14)
    mask = nn.Parameter(torch.zeros(5, 9, dtype=torch.float64))
    attention(*x, attn_mask=mask).sum().backward()
    assert mask.grad is not None


def _jagged() -> Tensor:
    parts = [torch.randn(n, H, D, generator=torch.Generator().manual_seed(n)) for n in (5, 7)]
    return torch.nested.nested_tensor(parts, layout=torch.jagged).transpose(1, 2)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_go_to_pytorch_or_are_refused() -> None:
    x = _jagged()
    for part, y in zip(attention(x, x, x).unbind(), x.unbind()):
        assert_close(part, F.scaled_dot_product_attention(y, y, y), 1e-5)
    strided = torch.nested.nested_tensor([torch.randn(H, n, D) for n in (5, 7)])
    assert attention(strided, strided, strided).is_nested
    for bad in (x, strided):
        with pytest.raises(TypeError, match="query must be a dense tensor, got a nested tensor: pad it"):
            attention(bad, bad, bad, backend="reference")
        with pytest.raises(TypeError, match="query must be a dense tensor, got a nested tensor: pad it"):
            attention_jvp(bad, bad, bad, bad)
        with pytest.raises(TypeError, match="attn_mask must be a dense tensor, got a nested tensor"):
            attention(*operands(5, 7), attn_mask=bad)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(TypeError, match="got a nested tensor: pad it"):
        attention(x, x, x)


def test_a_block_mask_is_refused() -> None:
    mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, 128, 128, device="cpu")
    with pytest.raises(TypeError, match="attn_mask must be a tensor, got BlockMask"):
        attention(*operands(128, 128), attn_mask=mask)
