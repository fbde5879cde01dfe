"""Building blocks of the attention kernels: rows in power-of-two pieces, matmuls of rows, masked logits.

A row of 72 numbers is held as pieces of 64 and 16, not padded to 128. "rows" is a tuple of one or two tiles [n, piece];
a matmul contracts over the pieces (a sum of tl.dot) or produces pieces (a tuple of tl.dot). A "matrix", ``*_mat``, is
the tuple (pointer, row stride, column stride). An absent tensor is the empty tuple: Triton 3.6 cannot return None.

Shapes: M queries and N keys of a tile, D head dim, Dv value dim. Equation numbers are those of README.md.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.constexpr_function
def pieces(width):
    """Return the widths of a row's pieces: (64, 16) for 72; (128, 0) for 120, which 64 + 64 pads just as much."""
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
    """Convert a stride of ``_launch.strides`` to elements, visibly a multiple of ALIGN to the compiler."""
    return (stride // 16).to(tl.int64) * ALIGN


@triton.jit
def matrix(ptr, strides, b, h, ALIGN: tl.constexpr):
    """Return the matrix of batch b and head h, () if ptr is None.

    strides: (batch, head, row, column). Only masks use the column stride; elsewhere rows are contiguous.
    """
    if ptr is None:
        return ()
    else:
        start = b * in_elements(strides[0], ALIGN) + h * in_elements(strides[1], ALIGN)
        return ptr + start, in_elements(strides[2], ALIGN), in_elements(strides[3], ALIGN)


@triton.jit
def tangent_matrices(ptr, strides, t, b, h, ALIGN: tl.constexpr):
    """Return a head's matrices of tangents t, t + 1, ... as (first matrix, tangent stride), () if ptr is None."""
    if ptr is None:
        return ()
    else:
        stride_t = in_elements(strides[0], ALIGN)
        return matrix(ptr + t * stride_t, strides[1:], b, h, ALIGN), stride_t


@triton.jit
def tangent_matrix(mats, t):
    """Return matrix t of those of tangent_matrices."""
    if len(mats) == 0:
        return ()
    else:
        first, stride_t = mats
        return first[0] + t * stride_t, first[1], first[2]


@triton.jit
def load_rows(mat, offs, n, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    """Load rows offs of a matrix [n, WIDTH], cast to DTYPE, zeros past its end; () of an absent matrix."""
    if len(mat) == 0:
        return ()
    else:
        row_ptrs = mat[0] + (offs.to(tl.int64) * mat[1])[:, None]  # [len(offs), 1]
        mask_n = (offs < n)[:, None]
        rows = (_load_piece(row_ptrs, mask_n, 0, first_piece(WIDTH), WIDTH, DTYPE),)
        if second_piece(WIDTH) > 0:
            rows += (_load_piece(row_ptrs, mask_n, first_piece(WIDTH), second_piece(WIDTH), WIDTH, DTYPE),)
        return rows


@triton.jit
def _load_piece(row_ptrs, mask_n, START: tl.constexpr, PIECE: tl.constexpr, WIDTH: tl.constexpr, DTYPE: tl.constexpr):
    cols = START + tl.arange(0, PIECE)[None, :]  # [1, PIECE]
    mask = mask_n if START + PIECE <= WIDTH else mask_n & (cols < WIDTH)
    return tl.load(row_ptrs + cols, mask=mask, other=0.0).to(DTYPE)


@triton.jit
def load_per_query(ptr, row, offs_m, nq, OTHER: tl.constexpr):
    """Load one number per query, [M], OTHER past the end; () if ptr is None. row: where the head's numbers begin."""
    if ptr is None:
        return ()
    else:
        return tl.load(ptr + row + offs_m, mask=offs_m < nq, other=OTHER)


@triton.jit
def load_base(base_ptr, row, offs_m, nq):
    """Load each query's base of (15) as the tuple (base,), or () if there is none."""
    if base_ptr is None:
        return ()
    else:
        return (load_per_query(base_ptr, row, offs_m, nq, 0.0),)


@triton.jit
def store_rows(ptr, rows, offs, n, WIDTH: tl.constexpr, ADD: tl.constexpr):
    """Store rows offs of a contiguous matrix [n, WIDTH], cast to its dtype; ADD: add them to what it holds."""
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
    """Return an fp32 accumulator [BLOCK, WIDTH]."""
    rows = (tl.zeros([BLOCK, first_piece(WIDTH)], tl.float32),)
    if second_piece(WIDTH) > 0:
        rows += (tl.zeros([BLOCK, second_piece(WIDTH)], tl.float32),)
    return rows


@triton.jit
def scale_rows(rows, factor):
    """Return rows times factor, a scalar or a column [n, 1]."""
    scaled = (rows[0] * factor,)
    if len(rows) > 1:
        scaled += (rows[1] * factor,)
    return scaled


@triton.jit
def add_scaled_rows(rows, other, factor):
    """Return rows + factor other. factor: a scalar or a column [n, 1]."""
    total = (rows[0] + factor * other[0],)
    if len(rows) > 1:
        total += (rows[1] + factor * other[1],)
    return total


@triton.jit
def mean_row(mat, n, WIDTH: tl.constexpr, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """Return the mean of the first BLOCK rows of a matrix [n, WIDTH] in fp32, as pieces [1, piece]."""
    rows = load_rows(mat, tl.arange(0, BLOCK), n, WIDTH, DTYPE)
    weight = 1.0 / tl.minimum(n, BLOCK).to(tl.float32)
    mean = (tl.sum(rows[0].to(tl.float32), 0)[None, :] * weight,)
    if len(rows) > 1:
        mean += (tl.sum(rows[1].to(tl.float32), 0)[None, :] * weight,)
    return mean


@triton.jit
def row_dot(x, y):
    """Return the row sums of x∘y in fp32. x: rows [n, D]; y: rows [n, D] or [1, D]."""
    total = tl.sum(x[0].to(tl.float32) * y[0].to(tl.float32), 1)
    for i in tl.static_range(1, len(x)):
        total += tl.sum(x[i].to(tl.float32) * y[i].to(tl.float32), 1)
    return total


@triton.jit
def dot_over(x, y, acc, PRECISION: tl.constexpr):
    """Return x yᵀ + acc, contracted over the head dim. x: rows [m, D], y: rows [n, D], acc: [m, n] or None."""
    for i in tl.static_range(len(x)):
        acc = tl.dot(x[i], tl.trans(y[i]), acc, input_precision=PRECISION)  # [m, n]
    return acc


@triton.jit
def dot_along(p, x, acc, PRECISION: tl.constexpr):
    """Return p x + acc, contracted over the sequence. p: [m, n], cast to x's dtype; x: [n, D] and acc: [m, D], rows."""
    p = p.to(x[0].dtype)
    total = (tl.dot(p, x[0], acc[0], input_precision=PRECISION),)
    if len(x) > 1:
        total += (tl.dot(p, x[1], acc[1], input_precision=PRECISION),)
    return total


@triton.jit
def load_mask(mask_mat, offs_m, offs_n, nq, nk):
    """Load a tile of the mask as the tuple (tile,), or () if there is none. Call it before the matmul it is added to.

    If the load comes after the matmul, Triton gives the online softmax's running maximum the layout of this load and
    computes P twice, in that layout and in the matmul's.
    """
    if len(mask_mat) == 0:
        return ()
    else:
        mask_ptrs = mask_mat[0] + (offs_m.to(tl.int64) * mask_mat[1] + offs_n.to(tl.int64) * mask_mat[2])
        return (tl.load(mask_ptrs, mask=(offs_m < nq) & (offs_n < nk), other=0),)


@triton.jit
def base_2_logits(qk, mask, base, offs_m, offs_n, nq, nk, scale, CAUSAL: tl.constexpr, BOUND: tl.constexpr):
    """Return S' of (4) and (15) for a tile of Q Kᵀ; BOUND: -inf past the end and above the diagonal.

    mask: of load_mask. base: a tuple of one number per query, () without an additive mask. offs_m, offs_n: query and
    key indices. One is a column and one a row, and base is like offs_m: the tile may be [M, N] or [N, M].
    """
    if len(base) > 0:  # finfo.min times log2 e would overflow to -inf and mask the key
        s = (qk * scale + mask[0].to(tl.float32) - base[0]) * LOG2_E  # (15)
    else:
        s = qk * (scale * LOG2_E)
        if len(mask) > 0:
            s = tl.where(mask[0], s, float("-inf"))
    if BOUND:
        attends = offs_n < nk
        if CAUSAL:
            attends = attends & (offs_n <= offs_m)
        s = tl.where(attends, s, float("-inf"))
    return s


@triton.jit
def dot_sides(x, y, acc, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """Return x yᵀ + acc of query rows x and key rows y as a tile [M, N], or [N, M] if KEYS_FIRST."""
    if KEYS_FIRST:
        return dot_over(y, x, acc, PRECISION)
    else:
        return dot_over(x, y, acc, PRECISION)


@triton.jit
def per_query(x, KEYS_FIRST: tl.constexpr):
    """Shape one number per query to broadcast over a tile [M, N], or [N, M] if KEYS_FIRST."""
    if KEYS_FIRST:
        return x[None, :]
    else:
        return x[:, None]


@triton.jit
def dot_sides_less(x, y, r, like, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr):
    """Return x yᵀ - r, x being () for zero. r: per query; like: a tile.

    For a tile [N, M] a thread holds many numbers of r; as the initial accumulator they take no register afterwards.
    """
    if len(x) == 0:
        return tl.zeros_like(like) - per_query(r, KEYS_FIRST)
    elif KEYS_FIRST:
        return dot_over(y, x, tl.zeros_like(like) - per_query(r, KEYS_FIRST), PRECISION)
    else:
        return dot_over(x, y, None, PRECISION) - per_query(r, KEYS_FIRST)


@triton.jit
def probabilities(
    q, k, lse, base, mask_mat, offs_m, offs_n, nq, nk, scale,
    CAUSAL: tl.constexpr, BOUND: tl.constexpr, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Compute P of a tile from the saved log-sum-exp, (8); zero if lse is +inf. lse: per query, natural logarithm."""
    rows, cols = per_query(offs_m, KEYS_FIRST), per_query(offs_n, not KEYS_FIRST)
    mask = load_mask(mask_mat, rows, cols, nq, nk)
    base = () if len(base) == 0 else (per_query(base[0], KEYS_FIRST),)
    qk = dot_sides(q, k, None, KEYS_FIRST, PRECISION)  # [M, N] or [N, M]
    s = base_2_logits(qk, mask, base, rows, cols, nq, nk, scale, CAUSAL, BOUND)
    return tl.exp2(s - per_query(lse * LOG2_E, KEYS_FIRST))


@triton.jit
def tangent_terms(
    # scores: P, and dS / P so far
    p, ds,
    # tiles of the primals, the tangents and the cotangent of tO, () if absent
    q, k, v, tq, tk, tv, h,
    # row terms, per query
    a, mu,
    scale, KEYS_FIRST: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add one tangent to a tile of the backward. Returns dS / P, dtS, and P∘U (() if tS is zero): (9) and (10)."""
    x = dot_sides_less(h, v, a, p, KEYS_FIRST, PRECISION)  # A - a
    if len(tv) > 0:
        ds = dot_sides(h, tv, ds, KEYS_FIRST, PRECISION)  # H tVᵀ of B, (9)
    pu = ()
    if len(tq) > 0 or len(tk) > 0:
        ts = None
        if len(tq) > 0:
            ts = dot_sides(tq, k, ts, KEYS_FIRST, PRECISION)  # (2)
        if len(tk) > 0:
            ts = dot_sides(q, tk, ts, KEYS_FIRST, PRECISION)
        u = ts * scale - per_query(mu, KEYS_FIRST)  # U of (2)
        ds += u * x  # (10)
        pu = p * u
    return ds, p * x, pu
