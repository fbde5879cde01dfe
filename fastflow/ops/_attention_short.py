"""Plain attention on rows so short that P is kept: whole products, which on a CPU beat tiles of them, ATen's too."""

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64)


def supports(q: Tensor, k: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Whether these products serve q ``[B, Hq, Nq, D]``, k, v ``[B, Hk, Nk, D]``; the rows are known to be short."""
    return mask is None and not is_causal and q.shape[1] == k.shape[1] and q.dtype in _DTYPES


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out ``[B, H, Nq, Dv]`` and P ``[B, H, Nq, Nk]``."""
    batch, (q, k, v) = q.shape[:2], (x.flatten(0, 1) for x in (q, k, v))
    P = _product(q, k.mT, scale)
    out = torch.bmm(torch.softmax(P, -1, out=P), v)
    return out.unflatten(0, batch), P.unflatten(0, batch)


def backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, P: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv for the cotangent g of out."""
    batch, (g, q, k, v, P) = q.shape[:2], (x.flatten(0, 1) for x in (g, q, k, v, P))
    dS = torch.ops.aten._softmax_backward_data(torch.bmm(g, v.mT), P, -1, P.dtype)
    grads = _product(dS, k, scale), _product(dS.mT, q, scale), torch.bmm(P.mT, g)
    return tuple(dx.unflatten(0, batch) for dx in grads)


def _product(x: Tensor, y: Tensor, scale: float) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1], y.shape[2]).baddbmm_(x, y, beta=0, alpha=scale)
