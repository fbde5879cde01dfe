"""Attention spelled out, for what the fused rules leave out: derivatives are autograd's own, memory is quadratic."""

import torch
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool) -> Tensor:
    """``softmax(s Q Kᵀ + bias) V``, zero where every key is masked; shapes and dtypes as ``fastflow::attention``."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    grouped = (k.shape[1], q.shape[1] // max(1, k.shape[1]))
    q_, k_, v_ = q.to(dtype).unflatten(1, grouped), k.to(dtype).unsqueeze(2), v.to(dtype).unsqueeze(2)
    scores = scale * (q_ @ k_.mT).flatten(1, 2)  # [B, Hq, Nq, Nk]
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores + mask if mask.dtype != torch.bool else scores.masked_fill(~mask, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(dtype).min)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    weights = weights / torch.where(total == 0, 1.0, total)
    return (weights.unflatten(1, grouped) @ v_).flatten(1, 2).to(v.dtype)
