"""Building blocks of the norm kernels: tiles of whole rows, their statistics, the Jacobian of the norm.

A tile is [R, C]: R rows, and C columns, a power of two of at least D. Everything is fp32 and zero outside the mask,
unless a function says otherwise. A tile that may be absent is the tuple (tile,) or (): Triton 3.6 cannot return None.
Equation numbers are those of README.md.
"""

import triton
import triton.language as tl

from ..attention._tile import in_elements


@triton.jit
def load_rows(ptr, strides, group, token, cols, mask, ALIGN: tl.constexpr):
    """Load rows of [G, M, D] as (tile,), () if ptr is None. strides: (group, token, ...); group, token: int64 [R]."""
    if ptr is None:
        return ()
    else:
        rows = group * in_elements(strides[0], ALIGN) + token * in_elements(strides[1], ALIGN)  # int64 [R]
        return (tl.load(ptr + rows[:, None] + cols[None, :], mask=mask, other=0.0).to(tl.float32),)


@triton.jit
def load_tangent(ptr, strides, k, group, token, cols, mask, ALIGN: tl.constexpr):
    """Load rows of entry k of a tensor [K, G, M, D] as (tile,), () if ptr is None."""
    if ptr is None:
        return ()
    else:
        start = k * in_elements(strides[0], ALIGN)
        return load_rows(ptr + start, (strides[1], strides[2]), group, token, cols, mask, ALIGN)


@triton.jit
def load_factor(ptr, strides, group, token, cols, mask, ALIGN: tl.constexpr, UNIT: tl.constexpr):
    """Load s of (3) as (tile,), () if ptr is None. Outside the mask it is 1 if UNIT."""
    rows = load_rows(ptr, strides, group, token, cols, mask, ALIGN)
    if UNIT and len(rows) > 0:
        rows = (1.0 + rows[0],)
    return rows


@triton.jit
def store_rows(ptr, tile, row, cols, mask, D: tl.constexpr):
    """Store a tile to the given rows (int64 [R]) of a contiguous tensor [rows, D], if ptr is not None."""
    if ptr is not None:
        tl.store(ptr + row[:, None] * D + cols[None, :], tile.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def row_mean(x, D: tl.constexpr):
    """Return the mean of each row, [R, 1]."""
    return tl.sum(x, 1)[:, None] * (1.0 / D)


@triton.jit
def standardize(x, mask, eps, D: tl.constexpr, CENTRED: tl.constexpr):
    """Return n [R, C], the mean [R, 1] or (), and rstd [R, 1]: (1)."""
    if CENTRED:
        mean = row_mean(x, D)  # [R, 1]
        centred = tl.where(mask, x - mean, 0.0)
        rstd = 1.0 / tl.sqrt_rn(row_mean(centred * centred, D) + eps)
        return centred * rstd, mean, rstd
    else:
        rstd = 1.0 / tl.sqrt_rn(row_mean(x * x, D) + eps)
        return x * rstd, (), rstd


@triton.jit
def restandardize(x, mean_ptr, rstd_ptr, row, mask_row, mask, CENTRED: tl.constexpr):
    """Return n [R, C] and rstd [R, 1] from the stored statistics. Both are zero in rows outside mask_row."""
    rstd = tl.load(rstd_ptr + row, mask=mask_row, other=0.0)[:, None]
    if CENTRED:
        mean = tl.load(mean_ptr + row, mask=mask_row, other=0.0)[:, None]
        return tl.where(mask, x - mean, 0.0) * rstd, rstd
    else:
        return x * rstd, rstd


@triton.jit
def jacobian_times(v, n, rstd, D: tl.constexpr, CENTRED: tl.constexpr):
    """Return J v of (2), [R, C], not zero outside the mask. v: [R, C]."""
    own = row_mean(v * n, D)  # [R, 1]
    if CENTRED:
        v -= row_mean(v, D)
    return rstd * (v - n * own)


@triton.jit
def scaled(x, factor):
    """Return x ∘ s; x itself if the factor is absent."""
    if len(factor) > 0:
        x = x * factor[0]
    return x


@triton.jit
def modulated_tangent(n, u, factor, t_scale, t_shift):
    """Return t_out of (4). u, the tangent of n, and those of scale and shift may be absent."""
    total = tl.zeros_like(n)
    if len(u) > 0:
        total += scaled(u[0], factor)
    if len(t_scale) > 0:
        total += n * t_scale[0]
    if len(t_shift) > 0:
        total += t_shift[0]
    return total


@triton.jit
def tangent_backward(H, t, n, rstd, D: tl.constexpr, CENTRED: tl.constexpr):
    """Return for a cotangent H of u = J t: J H, the gradient of t; the terms of H in V of (6); f of (7), [R, 1].

    J H is not zero outside the mask.
    """
    c_t, c_h = row_mean(t * n, D), row_mean(H * n, D)  # also in J t and J H: computed once
    dt = jacobian_times(H, n, rstd, D, CENTRED)
    return dt, -rstd * (c_h * t + c_t * H), row_mean(dt * t, D)


@triton.jit
def primal_gradient(V, f, n, rstd, D: tl.constexpr, CENTRED: tl.constexpr):
    """Return dx of (8), [R, C], not zero outside the mask. V: of (6); f: the sum of (7), [R, 1]."""
    return jacobian_times(V, n, rstd, D, CENTRED) - rstd * f * n
