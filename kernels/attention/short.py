"""Attention on a CPU without tangents or mask, on rows so short that P is kept: whole matmuls, no tiles."""

import torch
from torch import Tensor

from . import aten

_DTYPES = (torch.float32, torch.float64)


def supports(q: Tensor, k: Tensor) -> bool:
    """Return True if these functions take q ``[B, Hq, Nq, D]`` and k ``[B, Hk, Nk, D]``, whose rows are short."""
    return q.shape[1] == k.shape[1] and q.dtype in _DTYPES


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return out ``[B, H, Nq, Dv]`` and P ``[B, H, Nq, Nk]``."""
    *lead, Nk, Dv = v.shape
    Nq = q.shape[2]
    q, k, v = _merged(q), _merged(k), _merged(v)
    P = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=scale)  # beta = 0: the first argument is not read
    out = torch.bmm(torch.softmax(P, -1, out=P), v)
    return out.view(*lead, Nq, Dv), P.view(*lead, Nq, Nk)


def backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, P: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return dq, dk, dv for the cotangent g of out."""
    shapes = q.shape, k.shape, v.shape
    g, q, k, v, P = _merged(g), _merged(q), _merged(k), _merged(v), _merged(P)
    dS = aten.softmax_backward(torch.bmm(g, v.mT), P)
    dq = torch.baddbmm(q, dS, k, beta=0, alpha=scale)
    dk = torch.baddbmm(k, dS.mT, q, beta=0, alpha=scale)
    dv = torch.bmm(P.mT, g)
    return dq.view(shapes[0]), dk.view(shapes[1]), dv.view(shapes[2])


def _merged(x: Tensor) -> Tensor:
    """Merge ``[B, H, N, D]`` to ``[B H, N, D]``."""
    B, H, N, D = x.shape
    return x.reshape(B * H, N, D)
