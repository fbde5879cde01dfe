"""Compute the gradients on the keys' side, dK dV dtK dtV, one block of keys per program: (8) to (14) of README.md.

Shapes: M queries and N keys of a tile, D head dim, Dv value dim. Score tiles are transposed, [N, M].
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
def _absorb_queries(
    # running sums: dK, dV, dtK, dtV
    sums,
    # tiles of this block of keys
    k, v, tk, tv,
    # matrices of the query head
    q_mat, g_mat, tq_mat, h_mat, mask_mat,
    # row terms and where the head's begin
    lse_ptr, base_ptr, c_ptr, a_ptr, mu_ptr, row,
    # scale and positions
    scale, start_m, offs_n, nq, nk,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, CAUSAL: tl.constexpr, BOUND: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Add one block of queries to the sums."""
    dk, dv, dtk, dtv = sums
    DTYPE: tl.constexpr = k[0].dtype
    offs_m = start_m + tl.arange(0, BLOCK_M)
    q = load_rows(q_mat, offs_m, nq, HEAD_DIM, DTYPE)  # [M, D]
    lse = load_per_query(lse_ptr, row, offs_m, nq, float("inf"))  # [M]
    base = load_base(base_ptr, row, offs_m, nq)  # [M]
    p = probabilities(
        q, k, lse, base, mask_mat, offs_m, offs_n, nq, nk, scale, CAUSAL, BOUND, True, PRECISION,
    )  # fmt: skip  # (8), [N, M]
    g = load_rows(g_mat, offs_m, nq, VALUE_DIM, DTYPE)  # [M, Dv]
    ds = dot_sides_less(g, v, load_per_query(c_ptr, row, offs_m, nq, 0.0), p, True, PRECISION)  # G Vᵀ - c of (10)
    if len(h_mat) > 0:
        h = load_rows(h_mat, offs_m, nq, VALUE_DIM, DTYPE)  # [M, Dv]
        tq = load_rows(tq_mat, offs_m, nq, HEAD_DIM, DTYPE)  # [M, D]
        a = load_per_query(a_ptr, row, offs_m, nq, 0.0)
        mu = load_per_query(mu_ptr, row, offs_m, nq, 0.0)
        ds, dts, pu = tangent_terms(p, ds, q, k, v, tq, tk, tv, h, a, mu, scale, True, PRECISION)
        if len(tq) > 0 or len(tk) > 0:
            dv = dot_along(pu, h, dv, PRECISION)  # (11), [N, Dv]
        if len(dtv) > 0:
            dtv = dot_along(p, h, dtv, PRECISION)  # (12), [N, Dv]
        if len(tq) > 0:
            dk = dot_along(dts, tq, dk, PRECISION)  # (11), [N, D]
        if len(dtk) > 0:
            dtk = dot_along(dts, q, dtk, PRECISION)  # (12), [N, D]
    if len(g) > 0 and len(dv) > 0:
        dv = dot_along(p, g, dv, PRECISION)  # (11)
    if len(dk) > 0:
        dk = dot_along(p * ds, q, dk, PRECISION)  # (10), (11)
    return dk, dv, dtk, dtv


@triton.jit(do_not_specialize=["heads", "nq", "nk"])
def _dual_dkdv_kernel(
    # primals, tangents, cotangents of O and tO, mask
    q_ptr, k_ptr, v_ptr,
    tq_ptr, tk_ptr, tv_ptr,
    g_ptr, h_ptr,
    mask_ptr,
    # row terms
    lse_ptr, base_ptr, c_ptr, a_ptr, mu_ptr,
    # outputs
    dk_ptr, dv_ptr, dtk_ptr, dtv_ptr,
    scale,
    # strides (batch, head, row, column)
    strides_q, strides_k, strides_v, strides_tq, strides_tk, strides_tv, strides_g, strides_h, strides_mask,
    # sizes
    heads, nq, nk,
    # what is compiled, then the tile
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, CAUSAL: tl.constexpr, ADD: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Compute one block of keys against all queries of the GROUP heads that share it. Grid: B Hk × blocks."""
    DTYPE: tl.constexpr = k_ptr.dtype.element_ty
    blocks = tl.cdiv(nk, BLOCK_N)
    pid = tl.program_id(0)
    pid_n = pid % blocks
    pid_bh = (pid // blocks).to(tl.int64)
    b, h_k = pid_bh // (heads // GROUP), pid_bh % (heads // GROUP)
    offs_n = pid_n * BLOCK_N + tl.arange(0, BLOCK_N)

    k = load_rows(matrix(k_ptr, strides_k, b, h_k, ALIGN), offs_n, nk, HEAD_DIM, DTYPE)  # [N, D]
    v = load_rows(matrix(v_ptr, strides_v, b, h_k, ALIGN), offs_n, nk, VALUE_DIM, DTYPE)  # [N, Dv]
    tk = load_rows(matrix(tk_ptr, strides_tk, b, h_k, ALIGN), offs_n, nk, HEAD_DIM, DTYPE)
    tv = load_rows(matrix(tv_ptr, strides_tv, b, h_k, ALIGN), offs_n, nk, VALUE_DIM, DTYPE)
    sums = (
        () if dk_ptr is None else zero_rows(BLOCK_N, HEAD_DIM),
        () if dv_ptr is None else zero_rows(BLOCK_N, VALUE_DIM),
        () if dtk_ptr is None else zero_rows(BLOCK_N, HEAD_DIM),
        () if dtv_ptr is None else zero_rows(BLOCK_N, VALUE_DIM),
    )

    first = 0  # the first block of queries with one that attends to a key of this block
    whole = 0  # the first block of queries that all attend to all of these keys
    if CAUSAL:
        first = tl.minimum(nq, pid_n * BLOCK_N // BLOCK_M * BLOCK_M)
        whole = tl.minimum(nq, tl.cdiv((pid_n + 1) * BLOCK_N - 1, BLOCK_M) * BLOCK_M)
    for i in range(GROUP):  # a constant, so that without grouping no loop holds registers
        h_q = h_k * GROUP + i
        row = (b * heads + h_q) * nq
        q_mat = matrix(q_ptr, strides_q, b, h_q, ALIGN)
        g_mat = matrix(g_ptr, strides_g, b, h_q, ALIGN)
        tq_mat = matrix(tq_ptr, strides_tq, b, h_q, ALIGN)
        h_mat = matrix(h_ptr, strides_h, b, h_q, ALIGN)
        mask_mat = matrix(mask_ptr, strides_mask, b, h_q, 1)
        if CAUSAL:
            for start_m in tl.range(first, whole, BLOCK_M):
                sums = _absorb_queries(
                    sums, k, v, tk, tv, q_mat, g_mat, tq_mat, h_mat, mask_mat, lse_ptr, base_ptr, c_ptr, a_ptr, mu_ptr,
                    row, scale, start_m, offs_n, nq, nk, HEAD_DIM, VALUE_DIM, CAUSAL, True, PRECISION, BLOCK_M,
                )  # fmt: skip
        # keys past the end need no mask: they only affect their own rows, which are not stored
        for start_m in tl.range(whole, nq, BLOCK_M):
            sums = _absorb_queries(
                sums, k, v, tk, tv, q_mat, g_mat, tq_mat, h_mat, mask_mat, lse_ptr, base_ptr, c_ptr, a_ptr, mu_ptr, row,
                scale, start_m, offs_n, nq, nk, HEAD_DIM, VALUE_DIM, CAUSAL, False, PRECISION, BLOCK_M,
            )  # fmt: skip

    dk, dv, dtk, dtv = sums
    row = pid_bh * nk
    if dk_ptr is not None:
        store_rows(dk_ptr + row * HEAD_DIM, scale_rows(dk, scale), offs_n, nk, HEAD_DIM, ADD)
    if dv_ptr is not None:
        store_rows(dv_ptr + row * VALUE_DIM, dv, offs_n, nk, VALUE_DIM, ADD)
    if dtk_ptr is not None:
        store_rows(dtk_ptr + row * HEAD_DIM, scale_rows(dtk, scale), offs_n, nk, HEAD_DIM, False)
    if dtv_ptr is not None:
        store_rows(dtv_ptr + row * VALUE_DIM, dtv, offs_n, nk, VALUE_DIM, False)
