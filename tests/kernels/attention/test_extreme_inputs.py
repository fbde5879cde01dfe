"""Scales of zero and below, any finite mask, large logits: every implementation gives the reference's number."""

import pytest
import torch
from torch import Tensor

from fastflow.kernels.attention import aten, reference
from fastflow.ops.attention.api import attention, attention_jvp
from fastflow.ops.attention.select import IMPLEMENTATIONS, expanded, select
from tests.compare import DEVICE, assert_close

F32 = torch.finfo(torch.float32)
SCALES = [1.0, -1.0, 0.0, -0.0, 1e-30, 1e-310, -1e-310]
LOWEST = {
    "finfo.min": F32.min,
    "-1e30": -1e30,
    "-1e9": -1e9,
    "1e9": 1e9,
}


def draw(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def operands(queries: int = 9, keys: int = 7, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [draw(1, 2, n, 8, seed=i, dtype=dtype) for i, n in enumerate((queries, keys, keys))]


def truth(x: list[Tensor], t: list[Tensor], g: Tensor, h: Tensor, mask: Tensor | None, **options) -> list[Tensor]:
    """out, t_out and the six gradients in float32, whose sums of a logit and a mask round as the kernels' do."""
    x, t = [y.float() for y in x], [y.float()[None] for y in t]
    out, t_out, *_ = reference.dual_forward(*x, *t, mask, **options)
    return [out, t_out, *reference.dual_backward(g.float(), h.float()[None], *x, *t, mask, **options)]


def everything(name: str, x: list[Tensor], t: list[Tensor], g: Tensor, h: Tensor, mask: Tensor | None, **options):
    """The same by an implementation, and out and the gradients of the pair without tangents."""
    implementation = IMPLEMENTATIONS[name]
    full, t = expanded(mask, x[0], x[1]), [y[None] for y in t]
    saved = implementation.dual_forward(*x, *t, full, **options)
    dual = implementation.dual_backward(g, h[None], *x, *t, full, *saved, **options)
    out, state = implementation.forward(*x, mask, *options.values())
    return [*saved[:2], *dual], [out, *implementation.backward(g, *x, mask, out, state, *options.values())]


def check(name: str, x: list[Tensor], mask: Tensor | None, tolerance: float = 3e-5, **options) -> None:
    t, g, h = (
        [draw(*y.shape, seed=i + 5, dtype=y.dtype) for i, y in enumerate(x)],
        draw(*x[0].shape, seed=11, dtype=x[0].dtype),
        draw(*x[0].shape, seed=12, dtype=x[0].dtype),
    )
    full = expanded(mask, x[0], x[1])
    wanted = truth(x, t, g, h, full, **options)
    of_g = truth(x, t, g, torch.zeros_like(h), full, **options)
    dual, plain = everything(name, x, t, g, h, mask, **options)
    for i, (actual, expected) in enumerate(zip(dual, wanted, strict=True)):
        assert_close(actual, expected, tolerance, f"dual {i}")
    for i, (actual, expected) in enumerate(zip(plain, [wanted[0], *of_g[2:5]], strict=True)):
        assert_close(actual, expected, tolerance, f"plain {i}")


def implementations(*names: str) -> list[str]:
    return [name for name in names if name != "triton" or _has_triton()]


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("kind", ["none", "causal", "bool", "bias"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("queries", [9, 5])
def test_any_scale(scale: float, kind: str, queries: int) -> None:
    """Through the selection, so that no implementation is asked for what it does wrong."""
    x = operands(queries)
    bias = draw(1, 1, queries, 7, seed=20)
    mask = {"bool": bias > -0.5, "bias": bias}.get(kind)
    options = {"scale": scale, "is_causal": kind == "causal"}
    out = attention(*(y.requires_grad_() for y in x), mask, **options)
    g = draw(*out.shape, seed=11)
    grads = torch.autograd.grad(out, x, g)
    x = [y.detach() for y in x]
    wanted = truth(x, [torch.zeros_like(y) for y in x], g, torch.zeros_like(g), expanded(mask, *x[:2]), **options)
    for actual, expected in zip((out, *grads), (wanted[0], *wanted[2:5]), strict=True):
        assert_close(actual, expected, 1e-5)


@pytest.mark.parametrize("name", implementations("blocked", "triton"))
@pytest.mark.parametrize("kind", ["none", "causal", "bias"])
@pytest.mark.parametrize("scale", [-1.0, 0.0])
def test_kernels_at_scales_below_zero(name: str, scale: float, kind: str) -> None:
    x = operands()
    mask = draw(1, 1, 9, 7, seed=20) if kind == "bias" else None
    check(name, x, mask, scale=scale, is_causal=kind == "causal")


@pytest.mark.parametrize("scale", [-1.0, 0.0, 1e-310])
def test_causal_attention_at_such_a_scale_is_not_atens(scale: float) -> None:
    q = torch.zeros(1, 1, 40, 8)
    assert not aten.supports(q, q, q, None, scale, True)
    assert aten.supports(q, q, q, None, scale, False)
    assert aten.supports(q, q, q, None, 1e-30, True)


@pytest.mark.parametrize("lowest", LOWEST)
@pytest.mark.parametrize("name", implementations("blocked", "aten+blocked", "triton"))
def test_a_finite_mask_is_added(name: str, lowest: str) -> None:
    """A row of nothing else, a row where it stands beside -inf, beside other numbers, and a fully masked row."""
    value = LOWEST[lowest]
    mask = draw(1, 1, 9, 7, seed=20)
    mask[..., 1, :] = value
    mask[..., 2, :4] = value
    mask[..., 3, :] = torch.tensor([value] * 3 + [-torch.inf] * 4)
    mask[..., 4, :] = -torch.inf
    mask[..., 5, :] = torch.tensor([value, value * 0.75] + [-torch.inf] * 5)
    check(name, operands(), mask, scale=0.4, is_causal=False)


@pytest.mark.parametrize("query_dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask_dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_smallest_number_of_any_dtype_is_added(
    query_dtype: torch.dtype, mask_dtype: torch.dtype, backend: str
) -> None:
    x = operands(dtype=query_dtype)
    mask = torch.full((9, 7), torch.finfo(mask_dtype).min, dtype=mask_dtype, device=DEVICE)
    out, tangent = attention_jvp(*x, value_tangent=x[2], attn_mask=mask, backend=backend)
    plain = attention(*x, attn_mask=mask, backend=backend)
    if mask_dtype == torch.float16:  # in float32, -65504 leaves two digits of a logit
        expected = reference.attention(*(y.float() for y in x), mask.float(), 8**-0.5, False)
    else:
        expected = x[2].float().mean(2, keepdim=True).expand_as(out)
    for actual in (out, tangent, plain):
        assert_close(actual, expected, 4 * torch.finfo(query_dtype).eps + 1e-6)


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
@pytest.mark.parametrize("name", implementations("blocked", "aten+blocked", "triton"))
def test_infinity_and_nan_in_a_mask_give_nan_in_their_row_alone(name: str, value: float) -> None:
    mask = torch.zeros(1, 1, 9, 7, device=DEVICE)
    mask[..., 2, 3] = value
    out, _ = IMPLEMENTATIONS[name].forward(*operands(), mask, 0.4, False)
    assert out[:, :, 2].isnan().all()
    assert out[:, :, [i for i in range(9) if i != 2]].isfinite().all()


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6, 1e7])
def test_gradients_at_large_logits_are_the_references(size: float) -> None:
    """On a CPU; a row's keys come in equal pairs, so that its log-sum-exp differs from its largest logit."""
    q, k, v = operands(40, 40)
    k[:, :, 1::2] = k[:, :, ::2]
    x = [q * size, k, v]
    assert DEVICE.type != "cpu" or select_name(x) == "aten+blocked"
    g = draw(*q.shape, seed=11)
    leaves = [y.clone().requires_grad_() for y in x]
    dv = torch.autograd.grad(attention(*leaves, scale=1.0), leaves, g)[2]
    wide = [y.double().requires_grad_() for y in x]
    expected = torch.autograd.grad(reference.attention(*wide, None, 1.0, False), wide, g.double())[2]
    assert_close(dv, expected, 1e-5 if DEVICE.type == "cpu" else 4 * F32.eps * size)


def select_name(x: list[Tensor]) -> str:
    from fastflow.ops.attention.problem import canonical

    return select(canonical(*x, None, 0.0, False, 1.0, False), "auto").name


@pytest.mark.skipif(not _has_triton(), reason="Triton is absent")
@pytest.mark.parametrize("size", [1e2, 1e4])
def test_the_kernels_error_at_large_logits_is_the_documented_bound(size: float) -> None:
    """P = exp(S - lse) has a relative error of about eps |lse|."""
    q, k, v = operands(9, 8)
    k[:, :, 1::2] = k[:, :, ::2]
    x, g = [q * size, k, v], draw(*q.shape, seed=11)
    out, lse = IMPLEMENTATIONS["triton"].forward(*x, None, 1.0, False)
    dv = IMPLEMENTATIONS["triton"].backward(g, *x, None, out, lse, 1.0, False)[2]
    wide = [y.double().requires_grad_() for y in x]
    expected = torch.autograd.grad(reference.attention(*wide, None, 1.0, False), wide, g.double())[2]
    assert_close(dv, expected, 4 * F32.eps * lse.abs().max().item())


@pytest.mark.skipif(not _has_triton(), reason="Triton is absent")
@pytest.mark.parametrize("mean", [0, 16, 64])
@pytest.mark.parametrize("shifted", ["k", "tk"])
def test_a_common_part_of_the_keys_costs_no_precision(mean: float, shifted: str) -> None:
    """(16): the error of tO does not depend on it, in float16, which the interpreter rounds as a GPU does."""
    dtype = torch.float16
    x = [draw(1, 1, 40, 32, seed=i) for i in range(6)]
    x[{"k": 1, "tk": 4}[shifted]] += mean
    x = [y.to(dtype) for y in x]
    t = [y[None] for y in x[3:]]
    options = {"scale": 32**-0.5, "is_causal": False}
    _, t_out, _, mu = IMPLEMENTATIONS["triton"].dual_forward(*x[:3], *t, None, **options)
    wide = [y.double() for y in x]
    _, expected, _, mu_expected = reference.dual_forward(*wide[:3], *(y[None] for y in wide[3:]), None, **options)
    assert_close(t_out, expected, 5e-4)
    assert_close(mu, mu_expected, 1e-5)
