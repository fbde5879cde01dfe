"""Gradients on the queries' side, dQ dtQ, one block of queries a program: equations (9) to (14) of README.md."""

import triton
import triton.language as tl

from ._tile import (
    dot_along,
    dot_sides_less,
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
    sums, q, g, tq, h, lse, c, a, mu, k, v, tk, tv, mask, scale, offs_m, start_n, nq, nk,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, CAUSAL: tl.constexpr, BOUND: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One block of keys into the sums (dQ, dtQ). q, g, tq, h: rows; k, v, tk, tv, mask: matrices."""
    dq, dtq = sums
    DTYPE: tl.constexpr = q[0].dtype
    offs_n = start_n + tl.arange(0, BLOCK_N)
    k = load_rows(k, offs_n, nk, HEAD_DIM, DTYPE)
    v = load_rows(v, offs_n, nk, VALUE_DIM, DTYPE)
    p = probabilities(q, k, lse, mask, offs_m, offs_n, nq, nk, scale, CAUSAL, BOUND, False, PRECISION)
    ds = dot_sides_less(g, v, c, p, False, PRECISION)
    if len(h) > 0:
        tk = load_rows(tk, offs_n, nk, HEAD_DIM, DTYPE)
        tv = load_rows(tv, offs_n, nk, VALUE_DIM, DTYPE)
        ds, dts, _ = tangent_terms(p, ds, q, k, v, tq, tk, tv, h, a, mu, scale, False, PRECISION)
        if len(tk) > 0:
            dq = dot_along(dts, tk, dq, PRECISION)
        if len(dtq) > 0:
            dtq = dot_along(dts, k, dtq, PRECISION)
    if len(dq) > 0:
        dq = dot_along(p * ds, k, dq, PRECISION)
    return dq, dtq


@triton.jit(do_not_specialize=["heads", "nq", "nk"])
def _dual_dq_kernel(
    q_ptr, k_ptr, v_ptr, tq_ptr, tk_ptr, tv_ptr, g_ptr, h_ptr, mask_ptr, lse_ptr, c_ptr, a_ptr, mu_ptr,
    dq_ptr, dtq_ptr, scale,
    strides_q, strides_k, strides_v, strides_tq, strides_tk, strides_tv, strides_g, strides_h, strides_mask,
    heads, nq, nk,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr, CAUSAL: tl.constexpr, ADD: tl.constexpr,
    ALIGN: tl.constexpr, PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """One block of queries against all keys. Grid: (B Hq, blocks)."""
    DTYPE: tl.constexpr = q_ptr.dtype.element_ty
    blocks = tl.cdiv(nq, BLOCK_M)
    pid = tl.program_id(0)
    pid_m = pid % blocks
    pid_bh = (pid // blocks).to(tl.int64)
    b, h_q = pid_bh // heads, pid_bh % heads
    h_k = h_q // GROUP
    row = pid_bh * nq
    offs_m = pid_m * BLOCK_M + tl.arange(0, BLOCK_M)

    q = load_rows(matrix(q_ptr, strides_q, b, h_q, ALIGN), offs_m, nq, HEAD_DIM, DTYPE)
    g = load_rows(matrix(g_ptr, strides_g, b, h_q, ALIGN), offs_m, nq, VALUE_DIM, DTYPE)
    tq = load_rows(matrix(tq_ptr, strides_tq, b, h_q, ALIGN), offs_m, nq, HEAD_DIM, DTYPE)
    h = load_rows(matrix(h_ptr, strides_h, b, h_q, ALIGN), offs_m, nq, VALUE_DIM, DTYPE)
    lse = load_per_query(lse_ptr, row, offs_m, nq, float("inf"))
    c = load_per_query(c_ptr, row, offs_m, nq, 0.0)
    a = load_per_query(a_ptr, row, offs_m, nq, 0.0)
    mu = load_per_query(mu_ptr, row, offs_m, nq, 0.0)
    k = matrix(k_ptr, strides_k, b, h_k, ALIGN)
    v = matrix(v_ptr, strides_v, b, h_k, ALIGN)
    tk = matrix(tk_ptr, strides_tk, b, h_k, ALIGN)
    tv = matrix(tv_ptr, strides_tv, b, h_k, ALIGN)
    mask = matrix(mask_ptr, strides_mask, b, h_q, 1)
    sums = (
        () if dq_ptr is None else zero_rows(BLOCK_M, HEAD_DIM),
        () if dtq_ptr is None else zero_rows(BLOCK_M, HEAD_DIM),
    )

    end = nk
    whole = nk
    if CAUSAL:
        end = tl.minimum(nk, (pid_m + 1) * BLOCK_M)
        whole = tl.minimum(nk, pid_m * BLOCK_M + 1)
    whole = whole // BLOCK_N * BLOCK_N
    for start_n in tl.range(0, whole, BLOCK_N):
        sums = _absorb_keys(
            sums, q, g, tq, h, lse, c, a, mu, k, v, tk, tv, mask, scale, offs_m, start_n, nq, nk,
            HEAD_DIM, VALUE_DIM, CAUSAL, False, PRECISION, BLOCK_N,
        )  # fmt: skip
    for start_n in tl.range(whole, end, BLOCK_N):
        sums = _absorb_keys(
            sums, q, g, tq, h, lse, c, a, mu, k, v, tk, tv, mask, scale, offs_m, start_n, nq, nk,
            HEAD_DIM, VALUE_DIM, CAUSAL, True, PRECISION, BLOCK_N,
        )  # fmt: skip

    dq, dtq = sums
    if dq_ptr is not None:
        store_rows(dq_ptr + row * HEAD_DIM, scale_rows(dq, scale), offs_m, nq, HEAD_DIM, ADD)
    if dtq_ptr is not None:
        store_rows(dtq_ptr + row * HEAD_DIM, scale_rows(dtq, scale), offs_m, nq, HEAD_DIM, False)
