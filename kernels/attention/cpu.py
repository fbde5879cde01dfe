"""Softmax attention with tangents, forward and joint backward, tuned for the CPU.

The closed forms are those of ``reference.py``, computed block by block (``blocks.py``, which lists the shapes) so that
scores fit the cache and memory is linear in the sequence lengths. Numbers in comments are the equations of README.md.
K is the number of tangents. A name with a trailing underscore is the argument with its heads folded into rows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from .blocks import Sum, blocks_of, scratch_for


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
    """Compute attention and its tangents: ``O = P V``, ``tO = (P∘(tS − mu)) V + P tV``.

    q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``; tq, tk, tv the same with a leading K, None is
    zero; mask: None, or ``[B, Hq, Nq, Nk]``, bool (True attends) or additive. Returns out ``[B, Hq, Nq, Dv]``, t_out
    ``[K, B, Hq, Nq, Dv]``, lse ``[B, Hq, Nq]`` (natural logarithm; +inf for fully masked rows) and mu
    ``[K, B, Hq, Nq]``; t_out and mu are None without tangents.

    keep: return P ``[B, Hq, Nq, Nk]`` in place of lse and its tangents ``P∘(tS − mu)`` in place of mu, which saves the
    backward from computing them again.
    """
    tangents = [x for x in (tq, tk, tv) if x is not None]
    K = tangents[0].shape[0] if tangents else 0
    has_tS = tq is not None or tk is not None
    Hk, dtype = k.shape[1], at_least_float32(q, k, v, *tangents)
    mask = None if mask is None else mask.unflatten(1, (Hk, -1))
    q_, k_, v_ = (_fold(x, Hk, dtype) for x in (q, k, v))
    tq_, tk_, tv_ = (_fold_each(x, Hk, K, dtype) for x in (tq, tk, tv))
    out_ = q_.new_empty(*q_.shape[:2], v.shape[-1])
    state_ = (q_.new_zeros if is_causal else q_.new_empty)(*q_.shape[:2], k.shape[2] if keep else 1)
    t_out_, t_state_ = q_.new_empty(K, *out_.shape), q_.new_zeros(K, *state_.shape)

    blocks = blocks_of(q, k, is_causal)
    scratch = None if keep else scratch_for(blocks, q_, 2)
    for block in blocks:
        P, tS = (block.over(x) for x in scratch) if scratch else (block.at_scores(state_), None)
        qb, kb, vb = block.at_rows(q_), block.at_keys(k_), block.at_keys(v_)
        block.scores(qb, kb, mask, scale, out=P)  # [M, R, N]
        if keep:
            _softmax_(P, mask)
        else:
            block.at_rows(state_).copy_(_softmax_with_lse_(P, mask))
        o = Sum(block.at_rows(out_)).add(P, vb).total()  # (1)
        for i in range(K):
            to, tqb = Sum(block.at_rows(t_out_[i])), block.at_rows(tq_[i])
            tkb, tvb = block.at_keys(tk_[i]), block.at_keys(tv_[i])
            to.add(P, tvb)
            if not has_tS:
                continue
            tP = Sum(block.at_scores(t_state_[i]) if keep else tS)
            P_tS = tP.add(tqb, kb.mT, scale).add(qb, _transposed(tkb), scale).total().mul_(P)  # (2)
            mu = P_tS.sum(-1, keepdim=True)
            if keep:
                to.add(P_tS.addcmul_(P, mu, value=-1), vb)  # (3)
            else:
                block.at_rows(t_state_[i]).copy_(mu)
                to.add(P_tS, vb).total().addcmul_(mu, o, value=-1)  # (3)

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
    """Compute the gradients of ``⟨g, O⟩ + Σ_K ⟨h, tO⟩`` for q, k, v and for the tangents.

    ``A = H Vᵀ``, ``B = G Vᵀ + H tVᵀ``, ``U = tS − mu``, ``a = rowsum(H∘O)``, ``c = rowsum(G∘O + H∘tO)``;
    ``dtS = P∘(A − a)``, ``dS = P∘(B − c + U∘(A − a))``; ``dQ = s (dS K + dtS tK)``, ``dK = s (dSᵀ Q + dtSᵀ tQ)``,
    ``dV = Pᵀ G + (P∘U)ᵀ H``; ``dtQ = s dtS K``, ``dtK = s dtSᵀ Q``, ``dtV = Pᵀ H``.

    g ``[B, Hq, Nq, Dv]``, h ``[K, B, Hq, Nq, Dv]``, None is zero; the rest as :func:`dual_forward` takes and returns
    it. state and t_state are lse and mu, or P and its tangents if it was called with keep.

    Every gradient has its tensor's shape and dtype. The gradient of a tangent is None if h is None, or if the tangent
    is None and need_tangent_grads is False.
    """
    K = 0 if h is None else h.shape[0]
    likes = [x if tx is None else tx[0] for x, tx in ((q, tq), (k, tk), (v, tv))]
    if h is None:
        tq = tk = tv = t_out = t_state = None
    has_tS = tq is not None or tk is not None
    has_primal = g is not None or has_tS or tv is not None
    want_tq, want_tk, want_tv = (h is not None and (need_tangent_grads or x is not None) for x in (tq, tk, tv))

    Hk, dtype = k.shape[1], at_least_float32(*(x for x in (g, h, q, k, v, tq, tk, tv) if x is not None))
    mask = None if mask is None else mask.unflatten(1, (Hk, -1))
    q_, k_, v_ = (_fold(x, Hk, dtype) for x in (q, k, v))
    tq_, tk_, tv_ = (_fold_each(x, Hk, K, dtype) for x in (tq, tk, tv))
    g_, h_ = None if g is None else _fold(g, Hk, dtype), _fold_each(h, Hk, K, dtype)
    out_, t_out_ = _fold(out, Hk, dtype), _fold_each(t_out, Hk, K, dtype)
    kept = state.ndim == q.ndim
    state_ = _fold(state, Hk, dtype) if kept else None
    t_state_ = _fold_each(t_state if kept or t_state is None else t_state.unsqueeze(-1), Hk, K, dtype)
    a_ = [_row_dot((x, out_)) for x in h_]  # (7)
    c_ = _row_dot((g_, out_), *zip(h_, t_out_)) if has_primal else None

    wanted = want_tq, want_tk, want_tv
    new = q_.new_zeros if is_causal and k.shape[2] > q.shape[2] else q_.new_empty  # causal: some keys are fully masked
    dq_, dk_, dv_ = (new(x.shape) for x in (q_, k_, v_))
    dtq_, dtk_, dtv_ = (new(K * want, *x.shape) for x, want in zip((q_, k_, v_), wanted))
    blocks = blocks_of(q, k, is_causal)
    scratch = scratch_for(blocks, q_, 2 if kept else 4)
    for block in blocks:
        dS, W, *unkept = (block.over(x) for x in scratch)
        qb, kb, vb, gb = block.at_rows(q_), block.at_keys(k_), block.at_keys(v_), block.at_rows(g_)
        dq, dk, dv = Sum(block.at_rows(dq_)), block.sum_at_keys(dk_), block.sum_at_keys(dv_)
        P = block.at_scores(state_) if kept else _softmax_(block.scores(qb, kb, mask, scale, out=unkept[0]), mask)
        if gb is not None:
            dv.add(P.mT, gb)  # (11)
        if has_primal:
            B = Sum(dS).add(gb, vb.mT)  # (9)
            for h_i, tv_i in zip(h_, tv_):
                B.add(block.at_rows(h_i), _transposed(block.at_keys(tv_i)))
            B.total().sub_(block.at_rows(c_)).mul_(P)  # P∘(B − c)
        for i in range(K):
            hb, tqb, tkb = block.at_rows(h_[i]), block.at_rows(tq_[i]), block.at_keys(tk_[i])
            if want_tv:
                block.sum_at_keys(dtv_[i]).add(P.mT, hb)  # (12)
            if not (want_tq or want_tk):
                continue
            Sum(W).add(hb, vb.mT).total().sub_(block.at_rows(a_[i]))  # A − a
            if has_tS:
                if kept:
                    tP = block.at_scores(t_state_[i])
                else:
                    tS = Sum(unkept[1]).add(tqb, kb.mT, scale).add(qb, _transposed(tkb), scale).total()
                    tP = tS.sub_(block.at_rows(t_state_[i])).mul_(P)
                dS.addcmul_(tP, W)  # (10)
                dv.add(tP.mT, hb)
            dtS = W.mul_(P)  # (10)
            dq.add(dtS, tkb, scale)  # (11)
            dk.add(dtS.mT, tqb, scale)
            if want_tq:
                Sum(block.at_rows(dtq_[i])).add(dtS, kb, scale)  # (12)
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


def _softmax_(S: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys, in place, zero for fully masked rows."""
    nothing = None if mask is None else S.amax(-1, keepdim=True) == -torch.inf
    P = torch.softmax(S, -1, out=S)
    return P if nothing is None else P.masked_fill_(nothing, 0.0)


def _softmax_with_lse_(S: Tensor, mask: Tensor | None) -> Tensor:
    """Apply :func:`_softmax_` and return lse with a last axis of length 1."""
    top = S.amax(-1, keepdim=True)
    lse = top - _softmax_(S, mask).amax(-1, keepdim=True).log_()  # the largest probability is exp(top - lse)
    return lse if mask is None else lse.masked_fill_(top == -torch.inf, torch.inf)


def _row_dot(*pairs: tuple[Tensor | None, Tensor | None]) -> Tensor:
    """Return the row sums of ``Σ X∘Y`` over the pairs in which neither is None; there is at least one."""
    first, *rest = ((x, y) for x, y in pairs if x is not None and y is not None)
    total = torch.mul(*first)
    for x, y in rest:
        total.addcmul_(x, y)
    return total.sum(-1, keepdim=True)


def _fold(x: Tensor, heads: int, dtype: torch.dtype) -> Tensor:
    """Fold ``[..., B, H, N, D]`` to ``[..., B Hk, H / Hk · N, D]``, a view if x is contiguous and has the dtype.

    heads: Hk.
    """
    *K, B, H, N, D = x.shape
    return _cast(x, dtype).reshape(*K, B * heads, H // heads * N, D)


def _fold_each(x: Tensor | None, heads: int, num: int, dtype: torch.dtype) -> Sequence[Tensor | None]:
    return [None] * num if x is None else _fold(x, heads, dtype).unbind()


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x if x.dtype == dtype else x.to(dtype)


def _transposed(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.mT
