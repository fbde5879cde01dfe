"""PyTorch's private attention operators: fused attention that returns its log-sum-exp, and softmax's backward.

The public ``scaled_dot_product_attention`` does not return the log-sum-exp, which a separate backward needs, and there
is no public function for softmax's backward.
"""

import torch
from torch import Tensor

_aten = torch.ops.aten


def supports(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Return True if ATen has a fused kernel for q ``[B, Hq, Nq, D]``, k, v ``[B, Hk, Nk, D]``, mask broadcastable."""
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


def _unit_stride(x: Tensor) -> Tensor:
    """Make rows contiguous: the CPU kernel assumes it, whatever their stride says (seen in 2.11 and 2.13)."""
    return x if x.stride(-1) == 1 else x.contiguous()


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    if mask is None or mask.dtype != torch.bool:
        return mask if mask is None else mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)
