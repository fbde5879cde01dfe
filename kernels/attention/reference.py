"""The definition of attention, its tangents and the gradients of both: closed forms over whole score matrices.

``cpu.py`` and the Triton kernels are tested against this file. Numbers in comments are the equations of README.md.
Shapes: q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``, Hk dividing Hq; tangents tq, tk, tv and the
cotangent h of t_out with a leading K; mask: None or broadcastable to ``[B, Hq, Nq, Nk]``, bool (True attends) or
additive. Inside, heads are ``[B, Hk, G]`` for queries and ``[B, Hk, 1]`` for keys, G being Hq / Hk.
"""

import torch
from torch import Tensor

from ..._dtypes import at_least_float32

Triple = tuple[Tensor, Tensor, Tensor]


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool) -> Tensor:
    """Return ``softmax(s Q Kᵀ + bias) V``, zero for fully masked rows.

    Autograd gives every derivative, at the price of memory that is quadratic in the sequence length.
    """
    dtype = at_least_float32(q)
    q_, k_, v_ = _grouped(q.to(dtype), k), k.to(dtype).unsqueeze(2), v.to(dtype).unsqueeze(2)
    P = _softmax(_logits(q_, k_, mask, scale, is_causal))  # (1)
    return (P.unflatten(1, q_.shape[1:3]) @ v_).flatten(1, 2).to(v.dtype)


def dual_forward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor, mask: Tensor | None,
    *, scale: float, is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return out ``[B, Hq, Nq, Dv]``, t_out ``[K, ...]``, lse ``[B, Hq, Nq]`` (+inf for fully masked rows) and mu."""
    S = _logits(_grouped(q, k), k.unsqueeze(2), mask, scale, is_causal)
    lse = S.logsumexp(-1)
    P, U, mu = _dual_softmax(q, k, tq, tk, mask, scale, is_causal)
    out = P @ v.unsqueeze(2)  # (1)
    t_out = (P * U) @ v.unsqueeze(2) + P @ tv.unsqueeze(3)  # (3)
    return out.flatten(1, 2), t_out.flatten(2, 3), lse.masked_fill(lse == -torch.inf, torch.inf), mu.flatten(2, 3)


def dual_backward(
    g: Tensor, h: Tensor, q: Tensor, k: Tensor, v: Tensor, tq: Tensor, tk: Tensor, tv: Tensor, mask: Tensor | None,
    *, scale: float, is_causal: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dq, dk, dv, dtq, dtk, dtv of ``⟨g, out⟩ + Σ_K ⟨h, t_out⟩``."""
    out, t_out, *_ = dual_forward(q, k, v, tq, tk, tv, mask, scale=scale, is_causal=is_causal)
    P, U, _ = _dual_softmax(q, k, tq, tk, mask, scale, is_causal)
    G, H, out, t_out, Q, tQ = (_grouped(x, k) for x in (g, h, out, t_out, q, tq))
    K, V, tK, tV = k.unsqueeze(2), v.unsqueeze(2), tk.unsqueeze(3), tv.unsqueeze(3)

    a = (H * out).sum(-1, keepdim=True)  # (7)
    c = (G * out + (H * t_out).sum(0)).sum(-1, keepdim=True)
    A, B = H @ V.mT, G @ V.mT + (H @ tV.mT).sum(0)  # (9), [K, B, Hk, G, Nq, Nk] and [B, Hk, G, Nq, Nk]
    dtS = P * (A - a)  # (10)
    dS = P * (B - c + (U * (A - a)).sum(0))
    dQ = scale * (dS @ K + (dtS @ tK).sum(0))  # (11)
    dK = scale * (dS.mT @ Q + (dtS.mT @ tQ).sum(0)).sum(2)
    dV = (P.mT @ G + ((P * U).mT @ H).sum(0)).sum(2)
    dtQ, dtK, dtV = scale * dtS @ K, scale * (dtS.mT @ Q).sum(3), (P.mT @ H).sum(3)  # (12)
    return dQ.flatten(1, 2), dK, dV, dtQ.flatten(2, 3), dtK, dtV


def _dual_softmax(
    q: Tensor, k: Tensor, tq: Tensor, tk: Tensor, mask: Tensor | None, scale: float, is_causal: bool
) -> Triple:
    """Return P ``[B, Hk, G, Nq, Nk]``, U with a leading K, and mu ``[K, B, Hk, G, Nq]``."""
    Q, tQ, K, tK = _grouped(q, k), _grouped(tq, k), k.unsqueeze(2), tk.unsqueeze(3)
    P = _softmax(_logits(Q, K, mask, scale, is_causal)).unflatten(1, Q.shape[1:3])
    tS = scale * (tQ @ K.mT + Q @ tK.mT)  # (2)
    mu = (P * tS).sum(-1)
    return P, tS - mu.unsqueeze(-1), mu


def _logits(q: Tensor, k: Tensor, mask: Tensor | None, scale: float, is_causal: bool) -> Tensor:
    """Return S ``[B, Hq, Nq, Nk]`` of (1) for grouped q and k."""
    S = scale * (q @ k.mT).flatten(1, 2)
    if is_causal:
        mask = torch.ones(S.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is None:
        return S
    return S + mask if mask.dtype != torch.bool else S.masked_fill(~mask, -torch.inf)


def _softmax(S: Tensor) -> Tensor:
    """Softmax over the keys, zero for fully masked rows."""
    top = S.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(S.dtype).min)
    P = (S - top).exp()
    total = P.sum(-1, keepdim=True)
    return P / torch.where(total == 0, 1.0, total)


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """Split the heads of x ``[..., Hq, N, D]`` by the key head that they share: ``[..., Hk, G, N, D]``."""
    return x.unflatten(-3, (k.shape[1], x.shape[-3] // max(1, k.shape[1])))
