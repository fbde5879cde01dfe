"""Plain attention without a mask on rows so short that P is kept: whole products in place of ATen's tiles, on a CPU."""

import torch
from torch import Tensor

_DTYPES = (torch.float32, torch.float64)


def supports(q: Tensor, k: Tensor) -> bool:
    """Whether these products serve q ``[B, Hq, Nq, D]``, k, v ``[B, Hk, Nk, D]``; the rows are known to be short."""
    return q.shape[1] == k.shape[1] and q.dtype in _DTYPES


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """out ``[B, H, Nq, Dv]`` and P ``[B, H, Nq, Nk]``."""
    *lead, Nk, Dv = v.shape
    Nq = q.shape[2]
    q, k, v = _merged(q), _merged(k), _merged(v)
    P = torch.baddbmm(q.new_empty(1, 1, 1), q, k.mT, beta=0, alpha=scale)  # beta = 0: what is added is not read
    out = torch.bmm(torch.softmax(P, -1, out=P), v)
    return out.view(*lead, Nq, Dv), P.view(*lead, Nq, Nk)


def backward(g: Tensor, q: Tensor, k: Tensor, v: Tensor, P: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv for the cotangent g of out."""
    shapes = q.shape, k.shape, v.shape
    g, q, k, v, P = _merged(g), _merged(q), _merged(k), _merged(v), _merged(P)
    dS = torch._softmax_backward_data(torch.bmm(g, v.mT), P, -1, P.dtype)
    dq = torch.baddbmm(q, dS, k, beta=0, alpha=scale)
    dk = torch.baddbmm(k, dS.mT, q, beta=0, alpha=scale)
    dv = torch.bmm(P.mT, g)
    return dq.view(shapes[0]), dk.view(shapes[1]), dv.view(shapes[2])


def _merged(x: Tensor) -> Tensor:
    """``[B, H, N, D]`` to ``[B H, N, D]``."""
    B, H, N, D = x.shape
    return x.reshape(B * H, N, D)
