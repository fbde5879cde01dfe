"""PyTorch's private attention operators: fused attention that returns its log-sum-exp, and softmax's backward.

The public ``scaled_dot_product_attention`` does not return the log-sum-exp, which a separate backward needs, and there
is no public function for softmax's backward.
"""

import torch
from torch import Tensor

from ..._torch import is_fake
from . import cpu

_aten = torch.ops.aten

_SMALLEST_SCALE = torch.finfo(torch.float32).tiny
_TOLERANCE = 1e-4  # of P; float32 reaches it at logits of about 800


def supports(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool) -> bool:
    """Return True if ATen has a fused kernel for q ``[B, Hq, Nq, D]``, k, v ``[B, Hk, Nk, D]``, mask broadcastable.

    Causal kernels write -inf above the diagonal and then multiply by the scale: at a scale of zero or below they give
    NaN, and a subnormal scale may be flushed to zero.
    """
    if is_causal and scale < _SMALLEST_SCALE:
        return False
    if v.shape[-1] != q.shape[-1] or 0 in q.shape or 0 in k.shape:
        return False
    if q.device.type == "cpu":
        return q.shape[1] == k.shape[1]
    return q.device.type == "cuda" and _flash_supports(q, k, v, mask, is_causal)


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool
) -> tuple[Tensor, Tensor]:
    """Return out ``[B, H, Nq, D]`` and lse ``[B, H, Nq]``, natural logarithm, finite for fully masked rows.

    On a CPU the heads are the innermost axis of lse in memory.
    """
    if q.device.type == "cpu":
        q, k, v = (_unit_stride(x) for x in (q, k, v))
        out, lse = _aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, is_causal, attn_mask=_additive(mask, q.dtype), scale=scale
        )
    else:
        out, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, is_causal, scale=scale)
    return out, lse


def backward(
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    out: Tensor,
    lse: Tensor,
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv for the cotangent g of out."""
    if q.device.type == "cpu":
        if not is_fake(lse) and not _holds_log_sum(lse):
            return _backward_by_rows(g, q, k, v, mask, out, lse, scale, is_causal)
        g, q, k, v = (_unit_stride(x) for x in (g, q, k, v))
        return _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            g, q, k, v, out, lse, 0.0, is_causal, attn_mask=_additive(mask, q.dtype), scale=scale
        )
    # the cumulative lengths and the generator's state are read only for ragged batches and dropout
    unused = torch.empty(0, dtype=torch.int64, device=q.device)
    return _aten._scaled_dot_product_flash_attention_backward(
        g, q, k, v, out, lse, None, None, q.shape[2], k.shape[2], 0.0, is_causal, unused, unused, scale=scale
    )


def softmax_backward(dP: Tensor, P: Tensor) -> Tensor:
    """Return dS for P = softmax(S) over the last axis: one fused pass, where PyTorch's public functions take three."""
    return torch._softmax_backward_data(dP, P, -1, P.dtype)


def _flash_supports(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    # scaled_dot_product_attention pads other head dims and aligns causal masks; the operator does neither
    if q.shape[-1] % 8 != 0 or (is_causal and q.shape[2] != k.shape[2]) or any(x.stride(-1) != 1 for x in (q, k, v)):
        return False
    params = torch.backends.cuda.SDPAParams(q, k, v, mask, 0.0, is_causal, q.shape[1] != k.shape[1])
    return torch.backends.cuda.can_use_flash_attention(params)


def _holds_log_sum(lse: Tensor) -> bool:
    """Return True if lse is so small that exp(S - lse) has a relative error below 1e-4."""
    return float(torch.linalg.vector_norm(lse, torch.inf)) * torch.finfo(lse.dtype).eps < _TOLERANCE


def _backward_by_rows(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor, scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Compute :func:`backward` with the softmax taken again over whole rows, in the memory layout of ATen's."""
    mask = None if mask is None else mask.expand(*q.shape[:3], k.shape[2])
    operands = (q, k, v, None, None, None, mask, out, None, lse, None)
    dq, dk, dv, *_ = cpu.dual_backward(g, None, *operands, scale=scale, is_causal=is_causal)
    return tuple(x.transpose(1, 2).contiguous().transpose(1, 2) for x in (dq, dk, dv))  # [B, N, H, D] in memory


def _unit_stride(x: Tensor) -> Tensor:
    """Make rows contiguous: the CPU kernel assumes it, whatever their stride says (seen in 2.11 and 2.13)."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return the mask as the CPU kernels take it: additive, in dtype or float32, in which finfo.min stays finite."""
    if mask is None:
        return None
    if mask.dtype != torch.bool:
        return mask.to(torch.promote_types(dtype, torch.float32)) if mask.dtype != dtype else mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
