"""Softmax attention with tangents, forward and joint backward, in plain PyTorch: the truth for the kernels.

The closed forms are derived in README.md beside this file. Query rows are taken in blocks that fit the cache, so memory
is linear in the sequence lengths. float64 is computed in float64, everything else in float32.

Shapes: K tangents; M key heads of a block, R of its query rows, N of its keys. Rows are those of the G query heads of a
key head, one after the other: ``[B, Hq, Nq, D]`` is ``[B Hk, G Nq, D]``.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CPU_SCORES = 1 << 20  # scores a block: 4 MiB in float32
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
    keep: bool = False,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Attention and its tangents: ``O = P V``, ``tO = (P∘(tS − mu)) V + P tV``.

    q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``; tq, tk, tv the same with a leading K, None is
    zero; mask: None, or ``[B, Hq, Nq, Nk]``, bool (True attends) or additive. Returns out ``[B, Hq, Nq, Dv]``, t_out
    ``[K, B, Hq, Nq, Dv]``, lse ``[B, Hq, Nq]`` (natural logarithm; +inf where every key is masked) and mu
    ``[K, B, Hq, Nq]``; t_out and mu are None without tangents.

    keep: return P ``[B, Hq, Nq, Nk]`` for lse and its tangents ``P∘(tS − mu)`` for mu; the backward then does not
    compute them again.
    """
    tangents = [x for x in (tq, tk, tv) if x is not None]
    K = tangents[0].shape[0] if tangents else 0
    has_tS = tq is not None or tk is not None
    Hk, dtype = k.shape[1], _compute_dtype(q, k, v, *tangents)
    mask = None if mask is None else mask.unflatten(1, (Hk, -1))
    q_, k_, v_ = (_fold(x, Hk, dtype) for x in (q, k, v))
    tq_, tk_, tv_ = (_fold_each(x, Hk, K, dtype) for x in (tq, tk, tv))
    out_ = q_.new_empty(*q_.shape[:2], v.shape[-1])
    state_ = (q_.new_zeros if is_causal else q_.new_empty)(*q_.shape[:2], k.shape[2] if keep else 1)
    t_out_, t_state_ = q_.new_empty(K, *out_.shape), q_.new_zeros(K, *state_.shape)

    blocks = _blocks(q, k, is_causal)
    scratch = None if keep else _scratch(blocks, q_, 2)
    for block in blocks:
        P, tS = (block.over(x) for x in scratch) if scratch else (block.at_scores(state_), None)
        qb, kb, vb = block.at_rows(q_), block.at_keys(k_), block.at_keys(v_)
        block.scores(qb, kb, mask, scale, out=P)
        if keep:
            _softmax_(P, mask)
        else:
            block.at_rows(state_).copy_(_softmax_with_lse_(P, mask))
        o = _Sum(block.at_rows(out_)).add(P, vb).total()
        for i in range(K):
            to, tqb = _Sum(block.at_rows(t_out_[i])), block.at_rows(tq_[i])
            tkb, tvb = block.at_keys(tk_[i]), block.at_keys(tv_[i])
            to.add(P, tvb)
            if not has_tS:
                continue
            tP = _Sum(block.at_scores(t_state_[i]) if keep else tS)
            P_tS = tP.add(tqb, kb.mT, scale).add(qb, _transposed(tkb), scale).total().mul_(P)
            mu = P_tS.sum(-1, keepdim=True)
            if keep:
                to.add(P_tS.addcmul_(P, mu, value=-1), vb)
            else:
                block.at_rows(t_state_[i]).copy_(mu)
                to.add(P_tS, vb).total().addcmul_(mu, o, value=-1)

    out = _cast(out_.view(*q.shape[:-1], v.shape[-1]), v.dtype)
    state = state_.view(*q.shape[:-1], *state_.shape[2:]) if keep else state_.view(q.shape[:-1])
    if not tangents:
        return out, None, state, None
    return out, _cast(t_out_.view(K, *out.shape), tangents[0].dtype), state, t_state_.view(K, *state.shape)


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
    state: Tensor,
    t_state: Tensor | None,
    *,
    scale: float,
    is_causal: bool,
    need_tangent_grads: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of ``⟨g, O⟩ + Σ_K ⟨h, tO⟩`` for q, k, v and for the tangents.

    ``A = H Vᵀ``, ``B = G Vᵀ + H tVᵀ``, ``U = tS − mu``, ``a = rowsum(H∘O)``, ``c = rowsum(G∘O + H∘tO)``;
    ``dtS = P∘(A − a)``, ``dS = P∘(B − c + U∘(A − a))``; ``dQ = s (dS K + dtS tK)``, ``dK = s (dSᵀ Q + dtSᵀ tQ)``,
    ``dV = Pᵀ G + (P∘U)ᵀ H``; ``dtQ = s dtS K``, ``dtK = s dtSᵀ Q``, ``dtV = Pᵀ H``.

    g ``[B, Hq, Nq, Dv]``, h ``[K, B, Hq, Nq, Dv]``, None is zero; the rest as `dual_forward` takes and returns it,
    state and t_state being lse and mu, or P and its tangents. (lse serves the kernels, whose tiles do not see a whole
    row.) Every gradient has its tensor's shape and dtype. Those of the tangents are None where h is, and where the
    tangent is unless need_tangent_grads.
    """
    K = 0 if h is None else h.shape[0]
    likes = [x if tx is None else tx[0] for x, tx in ((q, tq), (k, tk), (v, tv))]
    if h is None:
        tq = tk = tv = t_out = t_state = None
    has_tS = tq is not None or tk is not None
    has_primal = g is not None or has_tS or tv is not None
    want_tq, want_tk, want_tv = (h is not None and (need_tangent_grads or x is not None) for x in (tq, tk, tv))

    Hk, dtype = k.shape[1], _compute_dtype(*(x for x in (g, h, q, k, v, tq, tk, tv) if x is not None))
    mask = None if mask is None else mask.unflatten(1, (Hk, -1))
    q_, k_, v_ = (_fold(x, Hk, dtype) for x in (q, k, v))
    tq_, tk_, tv_ = (_fold_each(x, Hk, K, dtype) for x in (tq, tk, tv))
    g_, h_ = None if g is None else _fold(g, Hk, dtype), _fold_each(h, Hk, K, dtype)
    out_, t_out_ = _fold(out, Hk, dtype), _fold_each(t_out, Hk, K, dtype)
    kept = state.ndim == q.ndim
    state_ = _fold(state, Hk, dtype) if kept else None
    t_state_ = _fold_each(t_state if kept or t_state is None else t_state.unsqueeze(-1), Hk, K, dtype)
    a_ = [_row_dot((x, out_)) for x in h_]
    c_ = _row_dot((g_, out_), *zip(h_, t_out_)) if has_primal else None

    wanted = want_tq, want_tk, want_tv
    new = q_.new_zeros if is_causal and k.shape[2] > q.shape[2] else q_.new_empty  # causal: there are keys nobody sees
    dq_, dk_, dv_ = (new(x.shape) for x in (q_, k_, v_))
    dtq_, dtk_, dtv_ = (new(K * want, *x.shape) for x, want in zip((q_, k_, v_), wanted))
    blocks = _blocks(q, k, is_causal)
    scratch = _scratch(blocks, q_, 2 if kept else 4)
    for block in blocks:
        dS, W, *unkept = (block.over(x) for x in scratch)
        qb, kb, vb, gb = block.at_rows(q_), block.at_keys(k_), block.at_keys(v_), block.at_rows(g_)
        dq, dk, dv = _Sum(block.at_rows(dq_)), block.sum_at_keys(dk_), block.sum_at_keys(dv_)
        P = block.at_scores(state_) if kept else _softmax_(block.scores(qb, kb, mask, scale, out=unkept[0]), mask)
        if gb is not None:
            dv.add(P.mT, gb)
        if has_primal:
            B = _Sum(dS).add(gb, vb.mT)
            for h_i, tv_i in zip(h_, tv_):
                B.add(block.at_rows(h_i), _transposed(block.at_keys(tv_i)))
            B.total().sub_(block.at_rows(c_)).mul_(P)
        for i in range(K):
            hb, tqb, tkb = block.at_rows(h_[i]), block.at_rows(tq_[i]), block.at_keys(tk_[i])
            if want_tv:
                block.sum_at_keys(dtv_[i]).add(P.mT, hb)
            if not (want_tq or want_tk):
                continue
            _Sum(W).add(hb, vb.mT).total().sub_(block.at_rows(a_[i]))
            if has_tS:
                if kept:
                    tP = block.at_scores(t_state_[i])
                else:
                    tS = _Sum(unkept[1]).add(tqb, kb.mT, scale).add(qb, _transposed(tkb), scale).total()
                    tP = tS.sub_(block.at_rows(t_state_[i])).mul_(P)
                dS.addcmul_(tP, W)
                dv.add(tP.mT, hb)
            dtS = W.mul_(P)
            dq.add(dtS, tkb, scale)
            dk.add(dtS.mT, tqb, scale)
            if want_tq:
                _Sum(block.at_rows(dtq_[i])).add(dtS, kb, scale)
            if want_tk:
                block.sum_at_keys(dtk_[i]).add(dtS.mT, qb, scale)
        if has_primal:
            dq.add(dS, kb, scale)
            dk.add(dS.mT, qb, scale)
        for dx in (dq, dk, dv):
            dx.total()

    dtangents = zip((dtq_, dtk_, dtv_), likes, wanted)
    return (
        *(_cast(dx.view(x.shape), x.dtype) for dx, x in zip((dq_, dk_, dv_), (q, k, v))),
        *(_cast(dtx.view(K, *x.shape), x.dtype) if want else None for dtx, x, want in dtangents),
    )


class _Sum:
    """A sum of products ``s X Y``, in memory that holds nothing yet, or the first part of the sum."""

    __slots__ = ("out", "started")

    def __init__(self, out: Tensor, started: bool = False) -> None:
        self.out, self.started = out, started

    def add(self, x: Tensor | None, y: Tensor | None, scale: float = 1.0) -> "_Sum":
        """An absent factor is zero."""
        if x is not None and y is not None:
            self.out.baddbmm_(x, y, beta=int(self.started), alpha=scale)
            self.started = True
        return self

    def total(self) -> Tensor:
        if not self.started:
            self.out.zero_()
            self.started = True
        return self.out


class _Block(NamedTuple):
    """Key heads, query rows and the keys those rows may see.

    The rows are those of all groups, or of one group from its query ``first`` on.
    """

    heads: slice  # of B·Hk
    rows: slice  # of G·Nq
    keys: slice  # of Nk
    groups: slice  # of G
    first: int
    is_causal: bool
    is_first: bool  # of those that see these keys
    shape: tuple[int, int, int]  # (M, R, N)
    size: int

    def at_rows(self, x: Tensor | None) -> Any:
        """``[B Hk, G Nq, D]`` to ``[M, R, D]``, a view."""
        return None if x is None else _narrow(_narrow(x, 0, self.heads), 1, self.rows)

    def at_keys(self, x: Tensor | None) -> Any:
        """``[B Hk, Nk, D]`` to ``[M, N, D]``, a view."""
        return None if x is None else _narrow(_narrow(x, 0, self.heads), 1, self.keys)

    def sum_at_keys(self, x: Tensor) -> _Sum:
        """The sum over all rows that see these keys."""
        return _Sum(self.at_keys(x), started=not self.is_first)

    def at_scores(self, x: Tensor | None) -> Any:
        """``[B Hk, G Nq, Nk]`` to ``[M, R, N]``, a view."""
        return None if x is None else _narrow(self.at_rows(x), 2, self.keys)

    def over(self, memory: Tensor) -> Tensor:
        """``[M, R, N]`` on top of scratch memory."""
        return _narrow(memory, 0, slice(0, self.size)).view(self.shape)

    def scores(self, q: Tensor, k: Tensor, mask: Tensor | None, scale: float, out: Tensor) -> Tensor:
        """``s Q Kᵀ`` with mask. q ``[M, R, D]``, k ``[M, N, D]``, mask ``[B, Hk, G, Nq, Nk]``."""
        S = _Sum(out).add(q, k.mT, scale).total()
        if not self.is_causal and mask is None:
            return S
        grouped = S.unflatten(1, (self.groups.stop - self.groups.start, -1))
        if self.is_causal and self.first < k.shape[1]:
            corner = grouped[..., self.first :]
            corner.masked_fill_(torch.ones(corner.shape[-2:], dtype=torch.bool, device=S.device).triu(1), -torch.inf)
        if mask is not None:
            queries = slice(self.first, self.first + grouped.shape[2])
            head = torch.arange(self.heads.start, self.heads.stop, device=mask.device)
            mask = mask[..., self.groups, queries, self.keys]
            mask = mask[head // mask.shape[1], head % mask.shape[1]]  # [M, G, R / G, N]
            if mask.dtype == torch.bool:
                grouped.masked_fill_(~mask, -torch.inf)
            else:
                grouped.add_(mask)
        return S


def _blocks(q: Tensor, k: Tensor, is_causal: bool) -> tuple[_Block, ...]:
    """Blocks of bounded size, on a CPU with a head for every thread. q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``."""
    budget, together = (_CPU_SCORES, torch.get_num_threads()) if q.device.type == "cpu" else (_GPU_SCORES, 1)
    heads, groups = k.shape[0] * k.shape[1], q.shape[1] // k.shape[1]
    return _partition(heads, groups, q.shape[2], k.shape[2], is_causal, budget, together)


@functools.lru_cache(maxsize=256)
def _partition(
    num_heads: int, num_groups: int, num_queries: int, num_keys: int, is_causal: bool, budget: int, together: int
) -> tuple[_Block, ...]:
    most = max(_MIN_ROWS, budget // (max(1, min(num_heads, together)) * num_keys))
    groups = num_groups if num_groups * num_queries <= most else 1
    queries = min(num_queries, most)
    heads = max(1, budget // max(1, groups * queries * num_keys))
    firsts = list(range(0, num_queries, queries)) if queries else []
    if is_causal:
        firsts.reverse()  # the last queries see the most keys: they start the sums
    blocks = []
    for head in range(0, num_heads, heads):
        for group in range(0, num_groups, groups):
            for first in firsts:
                last, last_head = min(first + queries, num_queries), min(head + heads, num_heads)
                start, num_rows = group * num_queries + first, (groups - 1) * num_queries + last - first
                seen = min(last, num_keys) if is_causal else num_keys
                shape = (last_head - head, num_rows, seen)
                blocks.append(
                    _Block(
                        heads=slice(head, last_head),
                        rows=slice(start, start + num_rows),
                        keys=slice(0, seen),
                        groups=slice(group, group + groups),
                        first=first,
                        is_causal=is_causal,
                        is_first=group == 0 and first == firsts[0],
                        shape=shape,
                        size=math.prod(shape),
                    )
                )
    return tuple(blocks)


def _softmax_(S: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys, in place; a row whose every key is masked becomes zero."""
    nothing = None if mask is None else S.amax(-1, keepdim=True) == -torch.inf
    P = torch.softmax(S, -1, out=S)
    return P if nothing is None else P.masked_fill_(nothing, 0.0)


def _softmax_with_lse_(S: Tensor, mask: Tensor | None) -> Tensor:
    """:func:`_softmax_`; returns lse with a last axis of length 1."""
    top = S.amax(-1, keepdim=True)
    lse = top - _softmax_(S, mask).amax(-1, keepdim=True).log_()  # the largest probability is exp(top - lse)
    return lse if mask is None else lse.masked_fill_(top == -torch.inf, torch.inf)


def _row_dot(*pairs: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Row sums of ``Σ X∘Y`` over the pairs that are both there, at least one."""
    first, *rest = ((x, y) for x, y in pairs if x is not None and y is not None)
    total = torch.mul(*first)
    for x, y in rest:
        total.addcmul_(x, y)
    return total.sum(-1, keepdim=True)


def _scratch(blocks: Sequence[_Block], like: Tensor, num: int) -> Sequence[Tensor]:
    """Memory for ``num`` matrices of a block's scores, shared by all blocks: fresh pages cost as much as a product."""
    size = max((block.size for block in blocks), default=0)
    return like.new_empty(num, size).unbind()


def _narrow(x: Tensor, dim: int, part: slice) -> Tensor:
    size = part.stop - part.start
    return x if size == x.shape[dim] else x.narrow(dim, part.start, size)


def _fold(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """``[..., B, H, N, D]`` to ``[..., B Hk, H / Hk · N, D]``: a view where x is contiguous and has the dtype. heads:
    Hk."""
    *K, B, H, N, D = x.shape
    return _cast(x, dtype).reshape(*K, B * heads, H // heads * N, D)


def _fold_each(x: Tensor | None, heads: int, num: int, dtype: torch.dtype) -> Sequence[Tensor | None]:
    return [None] * num if x is None else _fold(x, heads, dtype).unbind()


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _transposed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.mT


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
