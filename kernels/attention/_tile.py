"""Tiles that every attention kernel is made of: rows in power-of-two pieces, their products, masked logits.

A row of 72 numbers is held as pieces of 64 and 16, never as 128: "rows" is a tuple of one or two tiles [n, piece],
and a product with it is a sum (over the head dim) or a tuple (along it) of tensor-core products. A "matrix" is the
tuple (pointer, row stride, column stride). Whatever is absent is the empty tuple: Triton 3.6 cannot return None.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.constexpr_function
def pieces(width):
    """Widths of the pieces of a row: (64, 16) for 72, (128, 0) for 120 because 64 + 64 pads no less."""
    first = max(16, 1 << (width.bit_length() - 1))
    rest = max(0, width - first)
    second = max(16, 1 << (rest - 1).bit_length()) if rest else 0
    if second == first:
        return 2 * first, 0
    return first, second


@triton.constexpr_function
def first_piece(width):
    return pieces(width)[0]


@triton.constexpr_function
def second_piece(width):
    return pieces(width)[1]


@triton.jit
def in_elements(stride, ALIGN: tl.constexpr):
    """A stride as the launchers pass it (``_launch.strides``) in elements, visibly a multiple of ALIGN."""
    return (stride // 16).to(tl.int64) * ALIGN


@triton.jit
def matrix(ptr, strides, b, h, ALIGN: tl.constexpr):
    """The matrix (pointer, row stride, column stride) of batch b and head h, () where ptr is None.

    strides: (batch, head, row, column); the column stride counts for masks only, rows are contiguous elsewhere.
    """
    if ptr is None:
        return ()
    else:
        start = b * in_elements(strides[0], ALIGN) + h * in_elements(strides[1], ALIGN)
        return ptr + start, in_elements(strides[2], ALIGN), in_elements(strides[3], ALIGN)


@triton.jit
def tangent_matrices(ptr, strides, t, b, h, ALIGN: tl.constexpr):
    """A head's matrices of tangents t, t + 1, .. as (first matrix, tangent stride), () where ptr is None."""
    if ptr is None:
        return ()
    else:
        stride_t = in_elements(strides[0], ALIGN)
        return matrix(ptr + t * stride_t, strides[1:], b, h, ALIGN), stride_t


@triton.jit
def tangent_matrix(x, t):
    """The matrix of tangent t of those that tangent_matrices gave."""
    if len(x) == 0:
        return ()
    else:
        first, stride_t = x
        return first[0] + t * stride_t, first[1], first[2]


@triton.jit
def load_rows(x, offs, n, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """Rows offs of a matrix [n, WIDTH], cast to DTYPE, zeros past its end; () of an absent matrix."""
    if len(x) == 0:
        return ()
    else:
        row_ptrs = x[0] + (offs.to(tl.int64) * x[1])[:, None]
        mask_n = (offs < n)[:, None]
        rows = (_load_piece(row_ptrs, mask_n, 0, first_piece(WIDTH), WIDTH, DTYPE),)
        if second_piece(WIDTH) > 0:
            rows += (_load_piece(row_ptrs, mask_n, first_piece(WIDTH), second_piece(WIDTH), WIDTH, DTYPE),)
        return rows


@triton.jit
def _load_piece(row_ptrs, mask_n, START: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    cols = START + tl.arange(0, PIECE)[None, :]
    mask = mask_n if START + PIECE <= WIDTH else mask_n & (cols < WIDTH)
    return tl.load(row_ptrs + cols, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def load_per_query(ptr, row, offs_m, nq, OTHER: tl.constexpr):
    """One number a query, OTHER past the end; () where ptr is None. row: where the head's numbers begin."""
    if ptr is None:
        return ()
    else:
        return tl.load(ptr + row + offs_m, mask=offs_m < nq, other=OTHER)


@triton.jit
def store_rows(ptr, rows, offs, n, WIDTH: tl.constexpr, ADD: tl.constexpr):
    """Store rows offs of a contiguous matrix [n, WIDTH], cast to its dtype, or add them to what is there."""
    row_ptrs = ptr + (offs.to(tl.int64) * WIDTH)[:, None]
    for i in tl.static_range(len(rows)):
        cols = (first_piece(WIDTH) if i > 0 else 0) + tl.arange(0, rows[i].shape[1])[None, :]
        mask = (offs < n)[:, None] & (cols < WIDTH)
        piece = rows[i]
        if ADD:
            piece += tl.load(row_ptrs + cols, mask=mask, other=0.0)
        tl.store(row_ptrs + cols, piece.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def zero_rows(BLOCK: tl.constexpr, WIDTH: tl.constexpr):
    """An fp32 accumulator [BLOCK, WIDTH]."""
    rows = (tl.zeros([BLOCK, first_piece(WIDTH)], tl.float32),)
    if second_piece(WIDTH) > 0:
        rows += (tl.zeros([BLOCK, second_piece(WIDTH)], tl.float32),)
    return rows


@triton.jit
def scale_rows(rows, factor):
    """rows times factor, a scalar or a column [n, 1]."""
    scaled = (rows[0] * factor,)
    if len(rows) > 1:
        scaled += (rows[1] * factor,)
    return scaled


@triton.jit
def add_scaled_rows(rows, other, factor):
    """rows + factor other. factor: a scalar or a column [n, 1]."""
    total = (rows[0] + factor * other[0],)
    if len(rows) > 1:
        total += (rows[1] + factor * other[1],)
    return total


@triton.jit
def dot_over(x, y, acc, PRECISION: tl.constexpr):
    """x yᵀ + acc, contracted over the head dim. x: rows [m, D], y: rows [n, D], acc: [m, n] or None."""
    for i in tl.static_range(len(x)):
        acc = tl.dot(x[i], tl.trans(y[i]), acc, input_precision=PRECISION)
    return acc


@triton.jit
def dot_along(p, x, acc, PRECISION: tl.constexpr):
    """p x + acc, contracted over the sequence. p: [m, n], cast to x's dtype; x: rows [n, D]; acc: rows [m, D]."""
    p = p.to(x[0].dtype)
    total = (tl.dot(p, x[0], acc[0], input_precision=PRECISION),)
    if len(x) > 1:
        total += (tl.dot(p, x[1], acc[1], input_precision=PRECISION),)
    return total


@triton.jit
def load_mask(mask, offs_m, offs_n, nq, nk):
    """A tile of mask, a matrix or (), as the tuple (tile,) or (). Load it before the product that it is added to.

    After it, Triton gives the online softmax's running maximum the layout of this load, and computes P twice: in that
    layout and in the product's.
    """
    if len(mask) == 0:
        return ()
    else:
        mask_ptrs = mask[0] + (offs_m.to(tl.int64) * mask[1] + offs_n.to(tl.int64) * mask[2])
        return (tl.load(mask_ptrs, mask=(offs_m < nq) & (offs_n < nk), other=0),)


@triton.jit
def mask_logits(s, mask, offs_m, offs_n, nq, nk, CAUSAL: tl.constexpr, BOUND: tl.constexpr):
    """Base-2 logits with mask, of load_mask, applied, and -inf outside the bounds.

    offs_m, offs_n: query and key indices, one as a column and one as a row: s may be [m, n] or [n, m].
    """
    if len(mask) > 0:
        bias = mask[0]
        if bias.dtype == tl.int1:
            s = tl.where(bias, s, float("-inf"))
        else:
            s += bias.to(tl.float32) * LOG2_E
    if BOUND:
        visible = offs_n < nk
        if CAUSAL:
            visible = visible & (offs_n <= offs_m)
        s = tl.where(visible, s, float("-inf"))
    return s


@triton.jit
def dot_sides(x, y, acc, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """x yᵀ + acc of query rows x and key rows y as a tile [m, n], or [n, m] where KEYS_FIRST."""
    if KEYS_FIRST:
        return dot_over(y, x, acc, PRECISION)
    else:
        return dot_over(x, y, acc, PRECISION)


@triton.jit
def per_query(x, KEYS_FIRST: tl.constexpr):
    """One number a query, ready to broadcast over a tile [m, n], or [n, m] where KEYS_FIRST."""
    if KEYS_FIRST:
        return x[None, :]
    else:
        return x[:, None]


@triton.jit
def dot_sides_less(x, y, r, like, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """x yᵀ - r, x being () for zero. r: per query; like: a tile.

    A thread holds many numbers of r for a tile [n, m]: as the initial accumulator they cost no register afterwards.
    """
    if len(x) == 0:
        return tl.zeros_like(like) - per_query(r, KEYS_FIRST)
    elif KEYS_FIRST:
        return dot_over(y, x, tl.zeros_like(like) - per_query(r, KEYS_FIRST), PRECISION)
    else:
        return dot_over(x, y, None, PRECISION) - per_query(r, KEYS_FIRST)


@triton.jit
def probabilities(
    q, k, lse, mask, offs_m, offs_n, nq, nk, scale,
    CAUSAL: tl.constexpr, BOUND: tl.constexpr, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """P of a tile from the saved log-sum-exp, zero where lse is +inf. lse: per query, natural logarithm."""
    mask = load_mask(mask, per_query(offs_m, KEYS_FIRST), per_query(offs_n, not KEYS_FIRST), nq, nk)
    s = dot_sides(q, k, None, KEYS_FIRST, PRECISION) * (scale * LOG2_E)
    s = mask_logits(s, mask, per_query(offs_m, KEYS_FIRST), per_query(offs_n, not KEYS_FIRST), nq, nk, CAUSAL, BOUND)
    return tl.exp2(s - per_query(lse * LOG2_E, KEYS_FIRST))


@triton.jit
def tangent_terms(
    p, ds, q, k, v, tq, tk, tv, h, a, mu, scale, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What one tangent adds to a tile of the backward: ds with its share of dS / P, dtS, and P∘U.

    tq, tk, tv: rows, () if absent; h: cotangent rows of t_out; a, mu: per query.
    """
    x = dot_sides_less(h, v, a, p, KEYS_FIRST, PRECISION)  # A - a
    if len(tv) > 0:
        ds = dot_sides(h, tv, ds, KEYS_FIRST, PRECISION)
    pu = ()
    if len(tq) > 0 or len(tk) > 0:
        ts = None
        if len(tq) > 0:
            ts = dot_sides(tq, k, ts, KEYS_FIRST, PRECISION)
        if len(tk) > 0:
            ts = dot_sides(q, tk, ts, KEYS_FIRST, PRECISION)
        u = ts * scale - per_query(mu, KEYS_FIRST)
        ds += u * x
        pu = p * u
    return ds, p * x, pu
