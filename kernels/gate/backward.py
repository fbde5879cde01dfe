"""Compute the gradients of the gate, of y and of their tangents in one pass: (3) to (6) of README.md.

Shapes: a tile is [R, C], R rows of a group and C columns; a tile of a shared gate is [1, C].
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from ..norm._tile import load_rows, load_tangent, store_rows
from ..norm.partials import sum_partials
from ._launch import num_tangents, walk
from ._tile import gate_place, locate, store_gate_gradient


@triton.jit(do_not_specialize=["num_groups", "num_rows", "num_tangents"])
def _gated_add_backward_kernel(
    # primals, tangents, cotangents
    gate_ptr, y_ptr,
    t_gate_ptr, ty_ptr,
    g_ptr, h_ptr,
    # gradients; those of a shared gate as partial sums [..., tiles, D]
    d_gate_ptr, dy_ptr, d_t_gate_ptr, d_ty_ptr,
    # strides (group, row, column), of tangents and h with the tangent's first
    strides_gate, strides_y, strides_t_gate, strides_ty, strides_g, strides_h,
    # sizes
    num_groups, num_rows, num_tangents,
    # what is compiled, then the tile
    D: tl.constexpr, SHARED: tl.constexpr, ALIGN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    group, pid_m, rows, cols, mask = locate(num_rows, D, BLOCK_M, BLOCK_D)
    gate_rows, gate_mask = gate_place(rows, mask, cols, D, SHARED)
    gate = load_rows(gate_ptr, strides_gate, group, gate_rows, cols, gate_mask, ALIGN)  # [1 or R, C], if it is read
    y = load_rows(y_ptr, strides_y, group, rows, cols, mask, ALIGN)  # [R, C], if it is read
    dy = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    d_gate = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    if g_ptr is not None:
        g = load_rows(g_ptr, strides_g, group, rows, cols, mask, ALIGN)[0]
        if dy_ptr is not None:
            dy += gate[0] * g  # (3)
        if d_gate_ptr is not None:
            d_gate += y[0] * g  # (4)
    if h_ptr is not None:
        for k in tl.range(0, num_tangents):
            h = load_tangent(h_ptr, strides_h, k, group, rows, cols, mask, ALIGN)[0]
            index = k * num_groups.to(tl.int64) + group
            if t_gate_ptr is not None:
                t_gate = load_tangent(t_gate_ptr, strides_t_gate, k, group, gate_rows, cols, gate_mask, ALIGN)[0]
                dy += t_gate * h
            if ty_ptr is not None:
                d_gate += load_tangent(ty_ptr, strides_ty, k, group, rows, cols, mask, ALIGN)[0] * h
            if d_ty_ptr is not None:
                store_rows(d_ty_ptr, gate[0] * h, index * num_rows + rows, cols, mask, D)  # (5)
            if d_t_gate_ptr is not None:
                tile = y[0] * h  # (6)
                store_gate_gradient(d_t_gate_ptr, tile, index, pid_m, rows, cols, mask, num_rows, D, BLOCK_M, SHARED)
    store_rows(dy_ptr, dy, group * num_rows + rows, cols, mask, D)
    if d_gate_ptr is not None:
        store_gate_gradient(d_gate_ptr, d_gate, group, pid_m, rows, cols, mask, num_rows, D, BLOCK_M, SHARED)


def dual_backward(
    g: Tensor | None,
    h: Tensor | None,
    gate: Tensor,
    y: Tensor,
    t_gate: Tensor | None,
    ty: Tensor | None,
    wants: Sequence[bool],
    t_wants: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return d_gate, dy, and d_t_gate, d_ty with a leading K, for the cotangents g of out and h of t_out.

    Those of x and its tangents are g and h. wants: of d_gate and dy, which are None if not wanted; t_wants alike.
    """
    (want_gate, want_y), (want_t_gate, want_ty) = wants, t_wants
    t_gate, ty = (t_gate if want_y else None), (ty if want_gate else None)
    h = None if t_gate is None and ty is None and not any(t_wants) else h
    where, K = walk(gate, y, t_gate, ty, g, h), num_tangents(h)
    partial = where.options["SHARED"] and where.tiles_m > 1
    shape, dtype = ((y.shape[0], where.tiles_m, y.shape[2]), torch.float32) if partial else (gate.shape, gate.dtype)
    new = gate.new_empty if y.numel() else gate.new_zeros
    d_gate = new(shape, dtype=dtype) if want_gate else None
    d_t_gate = new((K, *shape), dtype=dtype) if want_t_gate else None
    dy = y.new_empty(y.shape) if want_y else None
    d_ty = y.new_empty(K, *y.shape) if want_ty else None
    if y.numel():
        reads_gate, reads_y = (g is not None and want_y) or want_ty, (g is not None and want_gate) or want_t_gate
        gate_, y_, *others = where.tensors
        with on_device(y):
            _gated_add_backward_kernel[where.grid](
                gate_ if reads_gate else None, y_ if reads_y else None, *others, d_gate, dy, d_t_gate, d_ty,
                *where.strides, *where.size[:2], K, **where.options,
            )  # fmt: skip
    given = [z for z in (d_gate, d_t_gate) if z is not None]
    if partial and given:
        sums = iter(sum_partials(given, [gate.dtype] * len(given)))
        d_gate, d_t_gate = (None if z is None else next(sums) for z in (d_gate, d_t_gate))
    return d_gate, dy, d_t_gate, d_ty
