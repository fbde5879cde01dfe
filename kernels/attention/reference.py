"""Softmax attention with tangents, forward and joint backward, in plain PyTorch: the truth for the kernels.

The closed forms are derived in README.md beside this file. Query rows are taken in blocks that fit the cache, so memory
is linear in the sequence lengths. float64 is computed in float64, everything else in float32.

Shapes: K tangents; M key heads of a block, G query heads a key head, R = G × (query rows of a block), N its keys.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

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
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Attention and its tangents: ``O = P V``, ``tO = (P∘(tS − mu)) V + P tV``.

    q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``; tq, tk, tv the same with a leading K, None is
    zero; mask: None, or ``[B, Hq, Nq, Nk]``, bool (True attends) or additive. Returns out ``[B, Hq, Nq, Dv]``, t_out
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

    G, Dv = q.shape[1] // k.shape[1], v.shape[-1]
    k_, v_ = _fold(k, 1, dtype), _fold(v, 1, dtype)
    tq_, tk_, tv_ = _fold_each(tq, G, K, dtype), _fold_each(tk, 1, K, dtype), _fold_each(tv, 1, K, dtype)
    q_, L_, R_ = _score_factors(_fold(q, G, dtype), k_, tq_, tk_, scale, tq is not None, tk is not None)
    values_ = _columns(v_, *tv_)
    out_, lse_ = _fold(out, G), _fold(lse.unsqueeze(-1), G)
    t_out_, mu_ = _fold_each(t_out, G, K), _fold_each(None if mu is None else mu.unsqueeze(-1), G, K)

    blocks = list(_blocks(q_, k_, is_causal))
    scratch = _scratch(blocks, q_, 2 if K else 1)
    for block in blocks:
        P, *tS = (block.over(x) for x in scratch)  # [M, R, N]
        top = block.scores(block.rows(q_), block.keys(k_), mask, out=P).amax(-1, keepdim=True)
        row_lse = top - _softmax_(P, mask).amax(-1, keepdim=True).log_()  # the largest probability is exp(top - lse)
        block.store(lse_, row_lse if mask is None else row_lse.masked_fill_(top == -torch.inf, torch.inf))
        o, *P_tv = torch.bmm(P, block.keys(values_)).split(Dv, dim=-1)
        block.store(out_, o)
        for i in range(K):
            to = P_tv[i] if P_tv else torch.zeros_like(o)
            if L_[i] is not None:
                P_tS = torch.bmm(block.rows(L_[i]), block.keys(R_[i]).mT, out=tS[0]).mul_(P)
                row_mean = P_tS.sum(-1, keepdim=True)
                to = torch.baddbmm(to, P_tS, block.keys(v_)).addcmul_(row_mean, o, value=-1)
                block.store(mu_[i], row_mean)
            block.store(t_out_[i], to)
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

    g ``[B, Hq, Nq, Dv]``, h ``[K, B, Hq, Nq, Dv]``, None is zero; the rest as `dual_forward` takes and returns it. lse
    serves the kernels, whose tiles do not see a whole row. Every gradient has its tensor's shape and dtype. Those of
    the tangents are None where h is, and where the tangent is unless need_tangent_grads.
    """
    K = 0 if h is None else h.shape[0]
    likes = [x if tx is None else tx[0] for x, tx in ((q, tq), (k, tk), (v, tv))]
    if h is None:
        tq = tk = tv = t_out = mu = None
    elif need_tangent_grads and (tq is None) != (tk is None):
        tq, tk = (h.new_zeros(K, *x.shape) if t is None else t for x, t in ((q, tq), (k, tk)))
    dtype = _compute_dtype(*(x for x in (g, h, q, k, v, tq, tk, tv) if x is not None))
    has_tS = tq is not None or tk is not None
    want_primal = g is not None or has_tS or tv is not None
    want_tq, want_tk, want_tv = (h is not None and (need_tangent_grads or x is not None) for x in (tq, tk, tv))

    G, D, Dv = q.shape[1] // k.shape[1], q.shape[-1], v.shape[-1]
    k_, v_ = _fold(k, 1, dtype), _fold(v, 1, dtype)
    tq_, tk_, tv_ = _fold_each(tq, G, K, dtype), _fold_each(tk, 1, K, dtype), _fold_each(tv, 1, K, dtype)
    q_, L_, R_ = _score_factors(_fold(q, G, dtype), k_, tq_, tk_, scale, want_tq, want_tk)
    g_, h_ = None if g is None else _fold(g, G, dtype), _fold_each(h, G, K, dtype)
    cotangents_ = _columns(g_, *h_) if want_tv else g_
    values_ = _columns(None if g is None else v_, *tv_)  # B is the leading cotangents times valuesᵀ
    out_, t_out_ = _fold(out, G, dtype), _fold_each(t_out, G, K, dtype)
    mu_ = _fold_each(None if mu is None else mu.unsqueeze(-1), G, K)
    a_ = [_row_dot(x, out_) for x in h_]
    c_ = sum(_row_dot(x, y) for x, y in ((g_, out_), *zip(h_, t_out_)) if x is not None and y is not None)

    dq_ = q_.new_empty(q_.shape) if want_primal else q_.new_zeros(q_.shape)
    dtq_ = [q_.new_empty(q_.shape) for _ in range(K * want_tq)]
    dk_, dv_, dR_ = torch.zeros_like(k_), torch.zeros_like(v_), [torch.zeros_like(x) for x in R_ if x is not None]
    dvalues_ = None if cotangents_ is None else v_.new_zeros(*v_.shape[:-1], cotangents_.shape[-1])

    blocks = list(_blocks(q_, k_, is_causal))
    scratch = _scratch(blocks, q_, 4 if K else 2)
    for block in blocks:
        qb, kb, vb = block.rows(q_), block.keys(k_), block.keys(v_)
        P, dS, *of_tangents = (block.over(x) for x in scratch)  # [M, R, N]
        _softmax_(block.scores(qb, kb, mask, out=P), mask)
        if cotangents_ is not None:
            cotangents = block.rows(cotangents_)
            block.keys(dvalues_).baddbmm_(P.mT, cotangents)
        if want_primal:
            if values_ is None:
                dS.copy_(-block.rows(c_))
            else:
                torch.bmm(cotangents[..., : values_.shape[-1]], block.keys(values_).mT, out=dS).sub_(block.rows(c_))
        dq = None
        for i in range(K):
            if L_[i] is None:
                continue
            hb, Lb, Rb = block.rows(h_[i]), block.rows(L_[i]), block.keys(R_[i])
            W, U = of_tangents
            torch.bmm(hb, vb.mT, out=W).sub_(block.rows(a_[i]))
            if has_tS:
                torch.bmm(Lb, Rb.mT, out=U).sub_(block.rows(mu_[i]))
                dS.addcmul_(U, W)
                block.keys(dv_).baddbmm_(U.mul_(P).mT, hb)
            dtS = W.mul_(P)
            dL = torch.bmm(dtS, Rb)
            if want_tq:
                block.store(dtq_[i], dL[..., :D] * scale)
            if tk is not None:
                dq = dL[..., -D:] if dq is None else dq + dL[..., -D:]
            block.keys(dR_[i]).baddbmm_(dtS.mT, Lb)
        if want_primal:
            dS.mul_(P)
            block.keys(dk_).baddbmm_(dS.mT, qb)
            dq = torch.bmm(dS, kb) if dq is None else torch.baddbmm(dq, dS, kb)
            block.store(dq_, dq.mul_(scale))

    if tq is not None:
        for dR in dR_:
            dk_ += dR[..., :D]
    dcolumns = [] if dvalues_ is None else list(dvalues_.split(Dv, dim=-1))
    if g is not None:
        dv_ += dcolumns.pop(0)
    dtangents = (dtq_, [dR[..., -D:] for dR in dR_] if want_tk else [], dcolumns)
    return (
        *(_unfold(dx, x) for dx, x in zip((dq_, dk_, dv_), (q, k, v))),
        *(_stacked([_unfold(dx, x) for dx in dxs]) if dxs else None for dxs, x in zip(dtangents, likes)),
    )


class _Block(NamedTuple):
    """Key heads, query rows and the keys those rows may see: slices of B·Hk, Nq and Nk."""

    head_slice: slice
    row_slice: slice
    key_slice: slice
    groups: int
    is_causal: bool

    def rows(self, x: Tensor) -> Tensor:
        """``[B Hk, G, Nq, D]`` to ``[M, R, D]``."""
        return _narrow(_narrow(x, 0, self.head_slice), 2, self.row_slice).flatten(1, 2)

    def keys(self, x: Tensor) -> Tensor:
        """``[B Hk, 1, Nk, D]`` to ``[M, N, D]``, a view."""
        return _narrow(_narrow(x.squeeze(1), 0, self.head_slice), 1, self.key_slice)

    def store(self, x: Tensor, value: Tensor) -> None:
        """Write ``[M, R, D]`` into its rows of ``[B Hk, G, Nq, D]``."""
        to = _narrow(_narrow(x, 0, self.head_slice), 2, self.row_slice)
        to.copy_(value.view(to.shape))

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(M, R, N)``."""
        heads, rows, keys = (part.stop - part.start for part in (self.head_slice, self.row_slice, self.key_slice))
        return heads, rows * self.groups, keys

    def over(self, memory: Tensor) -> Tensor:
        """``[M, R, N]`` on top of scratch memory."""
        return memory[: math.prod(self.shape)].view(self.shape)

    def scores(self, q: Tensor, k: Tensor, mask: Tensor | None, out: Tensor) -> Tensor:
        """``Q Kᵀ`` with mask, Q scaled. q ``[M, R, D]``, k ``[M, N, D]``, mask ``[B, Hq, Nq, Nk]``."""
        S = torch.bmm(q, k.mT, out=out)
        if not self.is_causal and mask is None:
            return S
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


def _blocks(q: Tensor, k: Tensor, is_causal: bool) -> Iterator[_Block]:
    """Blocks of bounded size, on a CPU with a head for every thread. q ``[B Hk, G, Nq, D]``, k ``[B Hk, 1, Nk, D]``."""
    num_heads, groups, num_rows, _ = q.shape
    num_keys = k.shape[2]
    budget, together = (_CPU_SCORES, torch.get_num_threads()) if q.device.type == "cpu" else (_GPU_SCORES, 1)
    rows = min(num_rows, max(_MIN_ROWS, budget // (min(num_heads, together) * groups * num_keys)))
    heads = max(1, budget // (groups * rows * num_keys))
    for head in range(0, num_heads, heads):
        for row in range(0, num_rows, rows):
            last = min(row + rows, num_rows)
            keys = min(last, num_keys) if is_causal else num_keys
            head_slice = slice(head, min(head + heads, num_heads))
            yield _Block(head_slice, slice(row, last), slice(0, keys), groups, is_causal)


def _softmax_(S: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax over the keys, in place; a row whose every key is masked becomes zero."""
    nothing = None if mask is None else S.amax(-1, keepdim=True) == -torch.inf
    P = torch.softmax(S, -1, out=S)
    return P if nothing is None else P.masked_fill_(nothing, 0.0)


def _scratch(blocks: list[_Block], like: Tensor, num: int) -> list[Tensor]:
    """Memory for ``num`` matrices of a block's scores, shared by all blocks: fresh pages cost as much as a product."""
    size = max(math.prod(block.shape) for block in blocks)
    return list(like.new_empty(num, size))


def _narrow(x: Tensor, dim: int, part: slice) -> Tensor:
    size = part.stop - part.start
    return x if size == x.shape[dim] else x.narrow(dim, part.start, size)


def _fold(x: Tensor, groups: int, dtype: torch.dtype | None = None) -> Tensor:
    """``[B, H, N, D]`` to ``[B H / G, G, N, D]``: a view where x is contiguous and has the dtype."""
    return x.to(dtype or x.dtype).reshape(-1, groups, *x.shape[2:])


def _fold_each(x: Tensor | None, groups: int, num: int, dtype: torch.dtype | None = None) -> list[Tensor | None]:
    return [None] * num if x is None else [_fold(x_i, groups, dtype) for x_i in x]


def _unfold(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like.dtype).reshape(like.shape).contiguous()


def _stacked(parts: list[Tensor]) -> Tensor:
    return torch.stack(parts) if len(parts) > 1 else parts[0].unsqueeze(0)


def _columns(*parts: Tensor | None) -> Tensor | None:
    """The given parts side by side: one deep or wide product in place of several."""
    given = [x for x in parts if x is not None]
    return torch.cat(given, dim=-1) if len(given) > 1 else given[0] if given else None


def _score_factors(
    q: Tensor, k: Tensor, tq: list[Tensor | None], tk: list[Tensor | None], scale: float, want_tq: bool, want_tk: bool
) -> tuple[Tensor, list[Tensor | None], list[Tensor | None]]:
    """``s Q``, ``L = s tQ | s Q`` and ``R = K | tK``, so that ``tS = L Rᵀ``; an absent tangent has no columns."""
    L = [_scaled(scale, tq_i, q if want_tk else None) for tq_i in tq]
    R = [_columns(k if want_tq else None, tk_i) for tk_i in tk]
    if L and want_tk:  # s Q is there already
        return L[0][..., -q.shape[-1] :], L, R
    return q * scale, L, R


def _scaled(scale: float, *parts: Tensor | None) -> Tensor | None:
    """:func:`_columns`, times scale."""
    given = [x for x in parts if x is not None]
    return torch.cat(given, dim=-1).mul_(scale) if len(given) > 1 else given[0] * scale if given else None


def _row_dot(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(-1, keepdim=True)


def _compute_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
