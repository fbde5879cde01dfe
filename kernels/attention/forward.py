"""Compute attention and its tangents in one pass over the keys: equations (1) to (6) of README.md.

Shapes: M queries and N keys of a tile, D head dim, Dv value dim.
"""

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from . import _launch
from ._autotune import tuned
from ._tile import (
    LN_2,
    add_scaled_rows,
    base_2_logits,
    dot_along,
    dot_over,
    load_base,
    load_mask,
    load_rows,
    matrix,
    mean_row,
    row_dot,
    scale_rows,
    store_rows,
    tangent_matrices,
    tangent_matrix,
    zero_rows,
)
from .config import Config, config_beside, config_for


@triton.jit
def _absorb_keys(
    # running sums: row maximum, row sum, O, and per tangent mu and (P∘tS) V + P tV
    state,
    # tiles and row terms of this block of queries
    q, tqs, base, centers,
    # matrices of the head
    k_mat, v_mat, tk_mats, tv_mats, mask_mat,
    # scale and positions
    scale, offs_m, start_n, nq, nk,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, CAUSAL: tl.constexpr, BOUND: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to the state, (4) and (5)."""
    m, z, acc, mus, t_accs = state
    DTYPE: tl.constexpr = q[0].dtype
    offs_n = start_n + tl.arange(0, BLOCK_N)
    mask = load_mask(mask_mat, offs_m[:, None], offs_n[None, :], nq, nk)
    k = load_rows(k_mat, offs_n, nk, HEAD_DIM, DTYPE)  # [N, D]
    qk = dot_over(q, k, None, PRECISION)  # [M, N]
    s = base_2_logits(qk, mask, base, offs_m[:, None], offs_n[None, :], nq, nk, scale, CAUSAL, BOUND)  # S'
    m_new = tl.maximum(m, tl.max(s, 1))  # [M]
    shift = m_new
    if len(mask) > 0:  # a row fully masked so far: -inf - -inf would be NaN
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s - shift[:, None])  # (4), [M, N]
    alpha = tl.exp2(m - shift)
    z = z * alpha + tl.sum(p, 1)
    v = load_rows(v_mat, offs_n, nk, VALUE_DIM, DTYPE)  # [N, Dv]
    acc = dot_along(p, v, scale_rows(acc, alpha[:, None]), PRECISION)  # (5), [M, Dv]
    new_mus = ()
    new_t_accs = ()
    for t in tl.static_range(len(t_accs)):
        mu = mus[t]
        t_acc = scale_rows(t_accs[t], alpha[:, None])
        if len(tqs) > 0 or len(tk_mats) > 0:
            ts = None
            if len(tqs) > 0:
                ts = dot_over(tqs[t], k, ts, PRECISION)  # tQ Kᵀ of (2), [M, N]
            if len(tk_mats) > 0:
                tk = load_rows(tangent_matrix(tk_mats, t), offs_n, nk, HEAD_DIM, DTYPE)
                ts = dot_over(q, tk, ts, PRECISION)
            pts = p * (ts * scale - centers[t][:, None])  # P∘(tS - r) of (16)
            mu = mu * alpha + tl.sum(pts, 1)
            t_acc = dot_along(pts, v, t_acc, PRECISION)  # (5), [M, Dv]
        if len(tv_mats) > 0:
            tv = load_rows(tangent_matrix(tv_mats, t), offs_n, nk, VALUE_DIM, DTYPE)
            t_acc = dot_along(p, tv, t_acc, PRECISION)
        new_mus += (mu,)
        new_t_accs += (t_acc,)
    return m_new, z, acc, new_mus, new_t_accs


@triton.jit(do_not_specialize=["heads", "group", "nq", "nk", "tangent_groups"])
def _dual_forward_kernel(
    # primals, tangents, mask
    q_ptr, k_ptr, v_ptr,
    tq_ptr, tk_ptr, tv_ptr,
    mask_ptr, base_ptr,
    # outputs: O and tO, row terms lse and mu
    out_ptr, t_out_ptr, lse_ptr, mu_ptr,
    scale,
    # strides (batch, head, row, column), of tangents with the tangent's first
    strides_q, strides_k, strides_v, strides_tq, strides_tk, strides_tv, strides_mask,
    # sizes
    heads, group, nq, nk, tangent_groups,
    # what is compiled, then the tile
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, TANGENTS: tl.constexpr, CAUSAL: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute one block of queries against all keys, with a group of TANGENTS tangents.

    Grid: B H × tangent groups × blocks, in one dimension, blocks innermost.
    """
    DTYPE: tl.constexpr = q_ptr.dtype.element_ty
    blocks = tl.cdiv(nq, BLOCK_M)
    pid = tl.program_id(0)
    pid_m = pid % blocks
    pid_t = pid // blocks % tangent_groups
    pid_bh = (pid // blocks // tangent_groups).to(tl.int64)
    n_bh = (tl.num_programs(0) // blocks // tangent_groups).to(tl.int64)
    b, h = pid_bh // heads, pid_bh % heads
    h_k = h // group
    t = pid_t.to(tl.int64) * TANGENTS
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)

    q = load_rows(matrix(q_ptr, strides_q, b, h, ALIGN), offs_m, nq, HEAD_DIM, DTYPE)  # [M, D]
    k_mat = matrix(k_ptr, strides_k, b, h_k, ALIGN)
    v_mat = matrix(v_ptr, strides_v, b, h_k, ALIGN)
    tq_mats = tangent_matrices(tq_ptr, strides_tq, t, b, h, ALIGN)
    tk_mats = tangent_matrices(tk_ptr, strides_tk, t, b, h_k, ALIGN)
    tv_mats = tangent_matrices(tv_ptr, strides_tv, t, b, h_k, ALIGN)
    mask_mat = matrix(mask_ptr, strides_mask, b, h, 1)
    base = load_base(base_ptr, pid_bh * nq, offs_m, nq)
    base = () if len(base) == 0 else (base[0][:, None],)
    tqs = ()
    centers = ()
    mus = ()
    t_accs = ()
    for i in tl.static_range(TANGENTS):
        if len(tq_mats) > 0:
            tqs += (load_rows(tangent_matrix(tq_mats, i), offs_m, nq, HEAD_DIM, DTYPE),)  # [M, D]
        if len(tq_mats) > 0 or len(tk_mats) > 0:
            r = tl.zeros([BLOCK_M], tl.float32)
            if len(tq_mats) > 0:
                r += row_dot(tqs[i], mean_row(k_mat, nk, HEAD_DIM, DTYPE, BLOCK_N))  # (17)
            if len(tk_mats) > 0:
                r += row_dot(q, mean_row(tangent_matrix(tk_mats, i), nk, HEAD_DIM, DTYPE, BLOCK_N))
            centers += (r * scale,)
        mus += (tl.zeros([BLOCK_M], tl.float32),)
        t_accs += (zero_rows(BLOCK_M, VALUE_DIM),)
    m = tl.full([BLOCK_M], float("-inf"), tl.float32)  # [M]
    state = (m, tl.zeros([BLOCK_M], tl.float32), zero_rows(BLOCK_M, VALUE_DIM), mus, t_accs)

    end = nk  # keys that some query of this block attends to
    whole = nk  # keys that all of them attend to, then whole blocks of those
    if CAUSAL:
        end = tl.minimum(nk, (pid_m + 1) * BLOCK_M)
        whole = tl.minimum(nk, pid_m * BLOCK_M + 1)
    whole = whole // BLOCK_N * BLOCK_N
    for start_n in tl.range(0, whole, BLOCK_N):
        state = _absorb_keys(
            state, q, tqs, base, centers, k_mat, v_mat, tk_mats, tv_mats, mask_mat, scale, offs_m, start_n, nq, nk,
            HEAD_DIM, VALUE_DIM, CAUSAL, False, PRECISION, BLOCK_N,
        )  # fmt: skip
    for start_n in tl.range(whole, end, BLOCK_N):
        state = _absorb_keys(
            state, q, tqs, base, centers, k_mat, v_mat, tk_mats, tv_mats, mask_mat, scale, offs_m, start_n, nq, nk,
            HEAD_DIM, VALUE_DIM, CAUSAL, True, PRECISION, BLOCK_N,
        )  # fmt: skip

    m, z, acc, mus, t_accs = state
    empty = z == 0.0  # fully masked rows
    z = tl.where(empty, 1.0, z)
    inverse = 1.0 / z
    out = scale_rows(acc, inverse[:, None])  # (6), [M, Dv]
    if out_ptr is not None and pid_t == 0:
        store_rows(out_ptr + pid_bh * nq * VALUE_DIM, out, offs_m, nq, VALUE_DIM, False)
        lse = tl.where(empty, float("inf"), (m + tl.log2(z)) * LN_2)
        tl.store(lse_ptr + pid_bh * nq + offs_m, lse, mask=offs_m < nq)
    for i in tl.static_range(TANGENTS):
        mu = mus[i] * inverse
        t_out = add_scaled_rows(scale_rows(t_accs[i], inverse[:, None]), out, -mu[:, None])  # (6), (16)
        if len(centers) > 0:
            mu += tl.where(empty, 0.0, centers[i])
        row = ((t + i) * n_bh + pid_bh) * nq
        store_rows(t_out_ptr + row * VALUE_DIM, t_out, offs_m, nq, VALUE_DIM, False)
        tl.store(mu_ptr + row + offs_m, mu, mask=offs_m < nq)


def dual_forward(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    *, scale: float, is_causal: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:  # fmt: skip
    """Compute attention and its tangents, ``out = P V`` and ``t_out = (P∘(tS − mu)) V + P tV``, by a Triton kernel.

    q: ``[B, Hq, Nq, D]``; k: ``[B, Hk, Nk, D]``; v: ``[B, Hk, Nk, Dv]``, Hk dividing Hq; float16, bfloat16 or float32.
    tq, tk, tv: None for zero, or ``[K, ...]`` of any float dtype, cast to the primals' as they are loaded.
    mask: None or a view ``[B, Hq, Nq, Nk]``, bool (True attends) or float (added to the scaled logits).

    Returns ``(out, t_out, lse, mu)``: out ``[B, Hq, Nq, Dv]`` in v's dtype, t_out ``[K, B, Hq, Nq, Dv]`` in the
    tangents' dtype, lse ``[B, Hq, Nq]`` and mu ``[K, B, Hq, Nq]`` in float32; t_out and mu are None without tangents.
    """
    tangents = [x for x in (tq, tk, tv) if x is not None]
    B, Hq, Nq, D = q.shape
    Hk, Nk, Dv = v.shape[1:]
    K = tangents[0].shape[0] if tangents else 0
    out = torch.empty((B, Hq, Nq, Dv), dtype=v.dtype, device=q.device)
    lse = torch.empty((B, Hq, Nq), dtype=torch.float32, device=q.device)
    t_out = mu = None
    if tangents:
        t_dtype = functools.reduce(torch.promote_types, (x.dtype for x in tangents))
        t_out = torch.empty((K, B, Hq, Nq, Dv), dtype=t_dtype, device=q.device)
        mu = torch.empty((K, B, Hq, Nq), dtype=torch.float32, device=q.device)

    tq, tk, tv = (_launch.cast(x, q.dtype) for x in (tq, tk, tv))
    q, k, v, tq, tk, tv = map(_launch.unit_rows, (q, k, v, tq, tk, tv))
    base = _launch.mask_base(mask)
    align = _launch.alignment(q, k, v, tq, tk, tv)

    def launch(config: Config) -> None:
        blocks = triton.cdiv(Nq, config.block_m)
        for first, groups, size in _tangent_groups(K, config.tangents):
            of_group = [None if x is None else x[first:] for x in (tq, tk, tv, t_out, mu)]
            primal = (out, lse) if first == 0 else (None, None)
            _dual_forward_kernel[(B * Hq * groups * blocks,)](
                q, k, v, *of_group[:3], mask, base, primal[0], of_group[3], primal[1], of_group[4], float(scale),
                *(_launch.strides(x, align) for x in (q, k, v, tq, tk, tv)), _launch.strides(mask, 1),
                Hq, Hq // Hk, Nq, Nk, groups,
                HEAD_DIM=D, VALUE_DIM=Dv, TANGENTS=size, CAUSAL=is_causal,
                ALIGN=align, PRECISION=_launch.dot_precision(q), BLOCK_M=config.block_m, BLOCK_N=config.block_n,
                num_warps=config.num_warps, num_stages=config.num_stages,
            )  # fmt: skip

    direction = _direction(K)
    with on_device(q):
        config = config_beside(mask, q, max(D, Dv), direction) or config_for(q, max(D, Dv), direction)
        launch(tuned(config, launch, q, direction, (D, Dv, is_causal, None if mask is None else mask.dtype)))
    return out, t_out, lse, mu


def _direction(n_tangents: int) -> str:
    return ("forward-plain", "forward", "forward-many")[min(n_tangents, 2)]


def _tangent_groups(n_tangents: int, size: int) -> list[tuple[int, int, int]]:
    """Return launches (first tangent, groups, tangents per group) that cover n_tangents without padding."""
    whole, rest = divmod(n_tangents, size)
    launches = [(0, whole, size)] if whole else []
    return launches + ([(whole * size, 1, rest)] if rest or not whole else [])
