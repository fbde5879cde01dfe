"""Shared by the gate kernels: the place of a program's tile, tiles of the gate and of its gradient.

Shapes: a tile is [R, C], R rows of a group and C columns; a tile of a shared gate is [1, C].
"""

import triton
import triton.language as tl

from ..norm._tile import load_rows, load_tangent, store_rows


@triton.jit
def locate(num_rows, D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return the group (int64), the tile's number in it, its rows [R] (int64), columns [C] and mask [R, C].

    Grid: groups × tiles of rows × tiles of columns, in one dimension, columns innermost.
    """
    tiles_d: tl.constexpr = (D + BLOCK_D - 1) // BLOCK_D
    pid = tl.program_id(0)
    cols = pid % tiles_d * BLOCK_D + tl.arange(0, BLOCK_D)  # [C]
    tiles_m = tl.cdiv(num_rows, BLOCK_M)
    pid_m = pid // tiles_d % tiles_m
    group = (pid // tiles_d // tiles_m).to(tl.int64)
    rows = pid_m.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)  # [R]; int64: it multiplies strides
    return group, pid_m, rows, cols, (rows < num_rows)[:, None] & (cols < D)[None, :]


@triton.jit
def gate_place(rows, mask, cols, D: tl.constexpr, SHARED: tl.constexpr):
    """Return the rows and the mask with which a tile of the gate is loaded: row 0 only if it is shared."""
    if SHARED:
        return tl.zeros([1], tl.int64), (cols < D)[None, :]
    else:
        return rows, mask


@triton.jit
def store_gate_gradient(
    ptr, tile, index, pid_m, rows, cols, mask, num_rows, D: tl.constexpr, BLOCK_M: tl.constexpr, SHARED: tl.constexpr
):
    """Store a tile [R, C], or its sum over rows to ``[..., tiles, D]`` if the gate is shared; index: k G + group."""
    if SHARED:
        row = index * tl.cdiv(num_rows, BLOCK_M) + pid_m + tl.zeros([1], tl.int64)
        store_rows(ptr, tl.sum(tile, 0)[None, :], row, cols, (cols < D)[None, :], D)
    else:
        store_rows(ptr, tile, index * num_rows + rows, cols, mask, D)


@triton.jit
def shared_row(ptr, strides, group, cols, D: tl.constexpr, ALIGN: tl.constexpr, SHARED: tl.constexpr):
    """Load what the rows of a group share as (tile [1, C],), () if ptr is None or each row has its own."""
    if ptr is None or not SHARED:
        return ()
    else:
        return load_rows(ptr, strides, group, tl.zeros([1], tl.int64), cols, (cols < D)[None, :], ALIGN)


@triton.jit
def shared_tangent(
    ptr, strides, group, cols, D: tl.constexpr, ALIGN: tl.constexpr, SHARED: tl.constexpr, SINGLE: tl.constexpr
):
    """Load the tangent of :func:`shared_row`, also () if it is one of several."""
    if ptr is None or not SHARED or not SINGLE:
        return ()
    else:
        return load_tangent(ptr, strides, 0, group, tl.zeros([1], tl.int64), cols, (cols < D)[None, :], ALIGN)


@triton.jit
def row_or(shared, ptr, strides, group, token, cols, mask, ALIGN: tl.constexpr):
    """Return shared if it is there, else load rows of [G, 1 or M, D]: (tile,), () if ptr is None."""
    if len(shared) > 0:
        return shared
    else:
        return load_rows(ptr, strides, group, token, cols, mask, ALIGN)


@triton.jit
def tangent_or(shared, ptr, strides, k, group, token, cols, mask, ALIGN: tl.constexpr):
    """Return shared if it is there, else load rows of tangent k: (tile,), () if ptr is None."""
    if len(shared) > 0:
        return shared
    else:
        return load_tangent(ptr, strides, k, group, token, cols, mask, ALIGN)


@triton.jit
def factor_of(scale, UNIT: tl.constexpr):
    """Return (s,), 1 + scale if UNIT, () if scale is absent."""
    if UNIT and len(scale) > 0:
        scale = (1.0 + scale[0],)
    return scale
