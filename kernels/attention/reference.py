"""Softmax attention with tangents, forward and joint backward, in plain PyTorch: the truth for the kernels.

The closed forms are derived in README.md beside this file. Query rows are taken in blocks that fit the cache, so memory
is linear in the sequence lengths. float64 is computed in float64, everything else in float32.

Shapes: K tangents; M key heads of a block, G query heads a key head, R = G × (query rows of a block), N keys of a block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

_CPU_SCORES = 1 << 17  # scores a block: a handful of such buffers stay in the cache
_GPU_SCORES = 1 << 25
_MIN_ROWS = 16


def dual_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    mask: Tensor | None,
    *,
    scale: float,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Attention and its tangents: ``O = P V``, ``tO = (P∘(tS − mu)) V + P tV``.

    q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``; tq, tk, tv the same with a leading K, None is zero;
    mask: None, or ``[B, Hq, Nq, Nk]``, bool (True attends) or additive. Returns out ``[B, Hq, Nq, Dv]``, t_out
    ``[K, B, Hq, Nq, Dv]``, lse ``[B, Hq, Nq]`` (natural logarithm; +inf where every key is masked) and mu
    ``[K, B, Hq, Nq]``; t_out and mu are None without tangents.
    """
    tangents = [x for x in (tq, tk, tv) if x is not None]
    K = tangents[0].shape[0] if tangents else 0
    dtype = _compute_dtype(q, k, v, *tangents)
    out = v.new_empty(*q.shape[:-1], v.shape[-1])
    lse = out.new_empty(out.shape[:-1], dtype=dtype)
    t_out = tangents[0].new_empty(K, *out.shape) if tangents else None
    mu = lse.new_zeros(K, *lse.shape) if tangents else None

    G = q.shape[1] // k.shape[1]
    q_, k_, v_ = _fold(q, G, dtype), _fold(k, 1, dtype), _fold(v, 1, dtype)
    tq_, tk_, tv_ = _fold_each(tq, G, K, dtype), _fold_each(tk, 1, K, dtype), _fold_each(tv, 1, K, dtype)
    out_, lse_ = _fold(out, G), _fold(lse.unsqueeze(-1), G)
    t_out_, mu_ = _fold_each(t_out, G, K), _fold_each(mu.unsqueeze(-1) if mu is not None else None, G, K)

    for block in _blocks(q_, k_, is_causal):
        qb, kb, vb = block.rows(q_) * scale, block.keys(k_), block.keys(v_)
        E = block.scores(qb, kb, mask)  # [M, R, N]
        top = E.amax(-1, keepdim=True)
        top.masked_fill_(top == -torch.inf, 0.0)
        E.sub_(top).exp_()
        total = E.sum(-1, keepdim=True)
        block.store(lse_, torch.where(total == 0, torch.inf, top + total.log()))
        total.masked_fill_(total == 0, 1.0)
        o = torch.bmm(E, vb).div_(total)
        block.store(out_, o)
        for i in range(K):
            to = torch.zeros_like(o) if tv is None else torch.bmm(E, block.keys(tv_[i]))
            tS = block.tangent_scores(qb, kb, tq_[i], tk_[i], scale)
            if tS is not None:
                row_sum = tS.mul_(E).sum(-1, keepdim=True)
                to.baddbmm_(tS, vb).sub_(row_sum * o)
                block.store(mu_[i], row_sum / total)
            block.store(t_out_[i], to.div_(total))
    return out, t_out, lse, mu


def dual_backward(
    g: Tensor | None,
    h: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tq: Tensor | None,
    tk: Tensor | None,
    tv: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    t_out: Tensor | None,
    lse: Tensor,
    mu: Tensor | None,
    *,
    scale: float,
    is_causal: bool,
    need_tangent_grads: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``⟨g, O⟩ + Σ_K ⟨h, tO⟩`` for q, k, v and for the tangents.

    ``A = H Vᵀ``, ``B = G Vᵀ + H tVᵀ``, ``U = tS − mu``, ``a = rowsum(H∘O)``, ``c = rowsum(G∘O + H∘tO)``;
    ``dtS = P∘(A − a)``, ``dS = P∘(B − c + U∘(A − a))``; ``dQ = s (dS K + dtS tK)``, ``dK = s (dSᵀ Q + dtSᵀ tQ)``,
    ``dV = Pᵀ G + (P∘U)ᵀ H``; ``dtQ = s dtS K``, ``dtK = s dtSᵀ Q``, ``dtV = Pᵀ H``.

    g ``[B, Hq, Nq, Dv]``, h ``[K, B, Hq, Nq, Dv]``, None is zero; the rest as `dual_forward` takes and returns it. Every
    gradient has its tensor's shape and dtype. Those of the tangents are None where h is, and where the tangent is unless
    need_tangent_grads.
    """
    K = 0 if h is None else h.shape[0]
    if h is None:
        tq = tk = tv = None
    dtype = _compute_dtype(*(x for x in (g, h, q, k, v, tq, tk, tv) if x is not None))
    want_primal = g is not None or any(x is not None for x in (tq, tk, tv))
    want_tq, want_tk, want_tv = (K > 0 and (need_tangent_grads or x is not None) for x in (tq, tk, tv))

    G = q.shape[1] // k.shape[1]
    q_, k_, v_ = _fold(q, G, dtype), _fold(k, 1, dtype), _fold(v, 1, dtype)
    tq_, tk_, tv_ = _fold_each(tq, G, K, dtype), _fold_each(tk, 1, K, dtype), _fold_each(tv, 1, K, dtype)
    g_ = None if g is None else _fold(g, G, dtype)
    h_ = _fold_each(h, G, K, dtype)
    lse_, mu_ = _fold(lse.unsqueeze(-1), G), _fold_each(None if mu is None else mu.unsqueeze(-1), G, K)
    a_ = _fold_each(None if h is None else _row_dot(h, out, dtype), G, K)
    c = lse.new_zeros(*lse.shape, 1, dtype=dtype)
    if g is not None:
        c += _row_dot(g, out, dtype)
    if h is not None and t_out is not None:
        c += _row_dot(h, t_out, dtype).sum(0)
    c_ = _fold(c, G)

    dq_, dk_, dv_ = torch.zeros_like(q_), torch.zeros_like(k_), torch.zeros_like(v_)
    dtq_ = [torch.zeros_like(q_) for _ in range(K * want_tq)]
    dtk_ = [torch.zeros_like(k_) for _ in range(K * want_tk)]
    dtv_ = [torch.zeros_like(v_) for _ in range(K * want_tv)]

    for block in _blocks(q_, k_, is_causal):
        qb, kb, vb = block.rows(q_) * scale, block.keys(k_), block.keys(v_)
        P = block.scores(qb, kb, mask).sub_(block.rows(lse_)).exp_()  # [M, R, N]
        dq = torch.zeros_like(qb)
        if want_primal:
            dS = -block.rows(c_).expand_as(P)
            if g_ is not None:
                gb = block.rows(g_)
                dS = torch.baddbmm(dS, gb, vb.mT)
                block.keys(dv_).baddbmm_(P.mT, gb)
        for i in range(K):
            hb = block.rows(h_[i])
            W = torch.bmm(hb, vb.mT).sub_(block.rows(a_[i]))
            if want_tv:
                block.keys(dtv_[i]).baddbmm_(P.mT, hb)
            if tv is not None:
                dS.baddbmm_(hb, block.keys(tv_[i]).mT)
            U = block.tangent_scores(qb, kb, tq_[i], tk_[i], scale)
            if U is not None:
                U.sub_(block.rows(mu_[i]))
                dS.addcmul_(U, W)
                block.keys(dv_).baddbmm_(U.mul_(P).mT, hb)
            dtS = W.mul_(P)
            if tq is not None:
                block.keys(dk_).baddbmm_(dtS.mT, block.rows(tq_[i]), alpha=scale)
            if tk is not None:
                dq.baddbmm_(dtS, block.keys(tk_[i]))
            if want_tq:
                block.store(dtq_[i], torch.bmm(dtS, kb).mul_(scale))
            if want_tk:
                block.keys(dtk_[i]).baddbmm_(dtS.mT, qb)
        if want_primal:
            dS.mul_(P)
            block.keys(dk_).baddbmm_(dS.mT, qb)
            block.store(dq_, dq.baddbmm_(dS, kb).mul_(scale))

    dq, dk, dv = (_unfold(dx, x) for dx, x in ((dq_, q), (dk_, k), (dv_, v)))
    dtq, dtk, dtv = (
        torch.stack([_unfold(dx, x if tx is None else tx[0]) for dx in dtx]) if dtx else None
        for dtx, tx, x in ((dtq_, tq, q), (dtk_, tk, k), (dtv_, tv, v))
    )
    return dq, dk, dv, dtq, dtk, dtv


class _Block(NamedTuple):
    """Key heads, query rows and the keys those rows may see: slices of B·Hk, Nq and Nk."""

    head_slice: slice
    row_slice: slice
    key_slice: slice
    groups: int
    is_causal: bool

    def rows(self, x: Tensor) -> Tensor:
        """``[B Hk, G, Nq, D]`` to ``[M, R, D]``."""
        return x[self.head_slice, :, self.row_slice].flatten(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        """``[B Hk, 1, Nk, D]`` to ``[M, N, D]``, a view."""
        return x[self.head_slice, 0, self.key_slice]

    def store(self, x: Tensor, value: Tensor) -> None:
        """Write ``[M, R, D]`` into its rows of ``[B Hk, G, Nq, D]``."""
        x[self.head_slice, :, self.row_slice] = value.unflatten(1, (self.groups, -1))

    def scores(self, q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
        """``Q Kᵀ`` with mask, Q scaled. q ``[M, R, D]``, k ``[M, N, D]``, mask ``[B, Hq, Nq, Nk]``."""
        S = torch.bmm(q, k.mT)
        grouped = S.unflatten(1, (self.groups, -1))
        first = self.row_slice.start
        if self.is_causal and first < k.shape[1]:
            corner = grouped[..., first:]
            corner.masked_fill_(torch.ones(corner.shape[-2:], dtype=torch.bool, device=S.device).triu(1), -torch.inf)
        if mask is not None:
            heads = mask.shape[1] // self.groups
            index = torch.arange(self.head_slice.start, self.head_slice.stop, device=mask.device)
            mask = mask.unflatten(1, (heads, self.groups))[..., self.row_slice, self.key_slice]
            mask = mask[index // heads, index % heads]  # [M, G, R / G, N]
            if mask.dtype == torch.bool:
                grouped.masked_fill_(~mask, -torch.inf)
            else:
                grouped.add_(mask)
        return S

    def tangent_scores(self, q: Tensor, k: Tensor, tq: Tensor | None, tk: Tensor | None, scale: float) -> Tensor | None:
        """``s (tQ Kᵀ + Q tKᵀ)`` ``[M, R, N]``; q is scaled already."""
        tS = None if tq is None else torch.bmm(self.rows(tq) * scale, k.mT)
        if tk is None:
            return tS
        tk = self.keys(tk)
        return torch.bmm(q, tk.mT) if tS is None else tS.baddbmm_(q, tk.mT)


def _blocks(q: Tensor, k: Tensor, is_causal: bool) -> Iterator[_Block]:
    """Blocks of bounded size. q ``[B Hk, G, Nq, D]``, k ``[B Hk, 1, Nk, D]``."""
    num_heads, groups, num_rows, _ = q.shape
    num_keys = k.shape[2]
    budget = _CPU_SCORES if q.device.type == "cpu" else _GPU_SCORES
    rows = min(num_rows, max(_MIN_ROWS, budget // (groups * num_keys)))
    heads = max(1, budget // (groups * rows * num_keys))
    for head in range(0, num_heads, heads):
        for row in range(0, num_rows, rows):
            last = min(row + rows, num_rows)
            keys = min(last, num_keys) if is_causal else num_keys
            head_slice = slice(head, min(head + heads, num_heads))
            yield _Block(head_slice, slice(row, last), slice(0, keys), groups, is_causal)


def _fold(x: Tensor, groups: int, dtype: torch.dtype | None = None) -> Tensor:
    """``[B, H, N, D]`` to ``[B H / G, G, N, D]``: a view where x is contiguous and has the dtype."""
    return x.to(dtype or x.dtype).reshape(-1, groups, *x.shape[2:])


def _fold_each(x: Tensor | None, groups: int, num: int, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    return [None] * num if x is None else [_fold(x_i, groups, dtype) for x_i in x]


def _unfold(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).view(like.shape)


def _row_dot(x: Tensor, y: Tensor, dtype: torch.dtype) -> Tensor:
    return (x.to(dtype) * y).sum(-1, keepdim=True)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
