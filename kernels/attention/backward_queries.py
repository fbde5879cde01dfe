"""Compute the gradients on the queries' side, dQ dtQ, one block of queries per program: (8) to (14) of README.md.

Shapes: M queries and N keys of a tile, D head dim, Dv value dim.
"""

import triton
import triton.language as tl

from ._tile import (
    dot_along,
    dot_sides_less,
    load_base,
    load_per_query,
    load_rows,
    matrix,
    probabilities,
    scale_rows,
    store_rows,
    tangent_terms,
    zero_rows,
)


@triton.jit
def _absorb_keys(
    # running sums: dQ, dtQ
    sums,
    # tiles and row terms of this block of queries
    q, g, tq, h, lse, base, c, a, mu,
    # matrices of the head
    k_mat, v_mat, tk_mat, tv_mat, mask_mat,
    # scale and positions
    scale, offs_m, start_n, nq, nk,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, CAUSAL: tl.constexpr, BOUND: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Add one block of keys to the sums."""
    dq, dtq = sums
    DTYPE: tl.constexpr = q[0].dtype
    offs_n = start_n + tl.arange(0, BLOCK_N)
    k = load_rows(k_mat, offs_n, nk, HEAD_DIM, DTYPE)  # [N, D]
    v = load_rows(v_mat, offs_n, nk, VALUE_DIM, DTYPE)  # [N, Dv]
    p = probabilities(
        q, k, lse, base, mask_mat, offs_m, offs_n, nq, nk, scale, CAUSAL, BOUND, False, PRECISION,
    )  # fmt: skip  # (8), [M, N]
    ds = dot_sides_less(g, v, c, p, False, PRECISION)  # G Vᵀ - c of (10), [M, N]
    if len(h) > 0:
        tk = load_rows(tk_mat, offs_n, nk, HEAD_DIM, DTYPE)  # [N, D]
        tv = load_rows(tv_mat, offs_n, nk, VALUE_DIM, DTYPE)  # [N, Dv]
        ds, dts, _ = tangent_terms(p, ds, q, k, v, tq, tk, tv, h, a, mu, scale, False, PRECISION)
        if len(tk) > 0:
            dq = dot_along(dts, tk, dq, PRECISION)  # (11), [M, D]
        if len(dtq) > 0:
            dtq = dot_along(dts, k, dtq, PRECISION)  # (12), [M, D]
    if len(dq) > 0:
        dq = dot_along(p * ds, k, dq, PRECISION)  # (10), (11)
    return dq, dtq


@triton.jit(do_not_specialize=["heads", "nq", "nk"])
def _dual_dq_kernel(
    # primals, tangents, cotangents of O and tO, mask
    q_ptr, k_ptr, v_ptr,
    tq_ptr, tk_ptr, tv_ptr,
    g_ptr, h_ptr,
    mask_ptr,
    # row terms
    lse_ptr, base_ptr, c_ptr, a_ptr, mu_ptr,
    # outputs
    dq_ptr, dtq_ptr,
    scale,
    # strides (batch, head, row, column)
    strides_q, strides_k, strides_v, strides_tq, strides_tk, strides_tv, strides_g, strides_h, strides_mask,
    # sizes
    heads, nq, nk,
    # what is compiled, then the tile
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, CAUSAL: tl.constexpr, ADD: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute one block of queries against all keys. Grid: B Hq × blocks."""
    DTYPE: tl.constexpr = q_ptr.dtype.element_ty
    blocks = tl.cdiv(nq, BLOCK_M)
    pid = tl.program_id(0)
    pid_m = pid % blocks
    pid_bh = (pid // blocks).to(tl.int64)
    b, h_q = pid_bh // heads, pid_bh % heads
    h_k = h_q // GROUP
    row = pid_bh * nq
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)

    q = load_rows(matrix(q_ptr, strides_q, b, h_q, ALIGN), offs_m, nq, HEAD_DIM, DTYPE)  # [M, D]
    g = load_rows(matrix(g_ptr, strides_g, b, h_q, ALIGN), offs_m, nq, VALUE_DIM, DTYPE)  # [M, Dv]
    tq = load_rows(matrix(tq_ptr, strides_tq, b, h_q, ALIGN), offs_m, nq, HEAD_DIM, DTYPE)
    h = load_rows(matrix(h_ptr, strides_h, b, h_q, ALIGN), offs_m, nq, VALUE_DIM, DTYPE)
    lse = load_per_query(lse_ptr, row, offs_m, nq, float("inf"))  # [M]
    base = load_base(base_ptr, row, offs_m, nq)
    c = load_per_query(c_ptr, row, offs_m, nq, 0.0)
    a = load_per_query(a_ptr, row, offs_m, nq, 0.0)
    mu = load_per_query(mu_ptr, row, offs_m, nq, 0.0)
    k_mat = matrix(k_ptr, strides_k, b, h_k, ALIGN)
    v_mat = matrix(v_ptr, strides_v, b, h_k, ALIGN)
    tk_mat = matrix(tk_ptr, strides_tk, b, h_k, ALIGN)
    tv_mat = matrix(tv_ptr, strides_tv, b, h_k, ALIGN)
    mask_mat = matrix(mask_ptr, strides_mask, b, h_q, 1)
    sums = (
        () if dq_ptr is None else zero_rows(BLOCK_M, HEAD_DIM),
        () if dtq_ptr is None else zero_rows(BLOCK_M, HEAD_DIM),
    )

    end = nk  # keys that some query of this block attends to
    whole = nk  # keys that all of them attend to, then whole blocks of those
    if CAUSAL:
        end = tl.minimum(nk, (pid_m + 1) * BLOCK_M)
        whole = tl.minimum(nk, pid_m * BLOCK_M + 1)
    whole = whole // BLOCK_N * BLOCK_N
    for start_n in tl.range(0, whole, BLOCK_N):
        sums = _absorb_keys(
            sums, q, g, tq, h, lse, base, c, a, mu, k_mat, v_mat, tk_mat, tv_mat, mask_mat, scale, offs_m, start_n,
            nq, nk, HEAD_DIM, VALUE_DIM, CAUSAL, False, PRECISION, BLOCK_N,
        )  # fmt: skip
    for start_n in tl.range(whole, end, BLOCK_N):
        sums = _absorb_keys(
            sums, q, g, tq, h, lse, base, c, a, mu, k_mat, v_mat, tk_mat, tv_mat, mask_mat, scale, offs_m, start_n,
            nq, nk, HEAD_DIM, VALUE_DIM, CAUSAL, True, PRECISION, BLOCK_N,
        )  # fmt: skip

    dq, dtq = sums
    if dq_ptr is not None:
        store_rows(dq_ptr + row * HEAD_DIM, scale_rows(dq, scale), offs_m, nq, HEAD_DIM, ADD)
    if dtq_ptr is not None:
        store_rows(dtq_ptr + row * HEAD_DIM, scale_rows(dtq, scale), offs_m, nq, HEAD_DIM, False)
