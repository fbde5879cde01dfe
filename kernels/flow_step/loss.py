"""Compute the squared error against a target that is rebuilt in registers, and its gradient for the prediction."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.tiles import locate, store_row_sums, sum_over_tiles
from ._launch import Terms, grid_over, launch
from ._tile import STREAM_SCALARS, address, affine, load_per_row, load_tile


@triton.jit(do_not_specialize=STREAM_SCALARS)
def _loss_kernel(
    # inputs: (x1, x0, z), None for a term that is not read, and their coefficients; the prediction
    terms, coefficients, pred_ptr,
    # output: [tiles_per_row, num_rows]
    partial_ptr,
    # streams of the drawn terms: the group that each starts in, and the element of that group
    x0_seed: tl.int64, x0_offset: tl.int64, z_seed: tl.int64, z_offset: tl.int64,
    x0_group: tl.int64, z_group: tl.int64, skipped: tl.int32,
    # strides per tensor (x1, x0, z, then the others), sizes of the inner axes
    strides, sizes, num_rows, row_size, tiles_per_row,
    # the terms' kinds, the walk, the tile
    KINDS: tl.constexpr, VARIES: tl.constexpr, AXES: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, group, col, mask = locate(skipped, num_rows, row_size, tiles_per_row, ROWS, GROUPS, 4, SHIFTED, WIDE)
    streams = (0, (x0_seed, x0_offset, x0_group), (z_seed, z_offset, z_group))
    u = affine(  # (1), [R, G, 4]
        terms, coefficients, strides, sizes, streams, row, group, col, mask, num_rows, KINDS, VARIES, AXES
    )
    p = load_tile(pred_ptr, row, col, mask, strides[3], sizes, AXES)  # [R, G, 4]
    r = tl.where(mask, p - u, 0.0)
    store_row_sums(partial_ptr, r * r, row, num_rows, tiles_per_row)  # (2)


@triton.jit(do_not_specialize=STREAM_SCALARS)
def _loss_backward_kernel(
    # inputs: (x1, x0, z), None for a term that is not read, and their coefficients; the prediction
    terms, coefficients, pred_ptr,
    # output
    grad_ptr,
    # 2 g_b, [num_rows]
    scale_ptr,
    # streams of the drawn terms: the group that each starts in, and the element of that group
    x0_seed: tl.int64, x0_offset: tl.int64, z_seed: tl.int64, z_offset: tl.int64,
    x0_group: tl.int64, z_group: tl.int64, skipped: tl.int32,
    # strides per tensor (x1, x0, z, then the others), sizes of the inner axes
    strides, sizes, num_rows, row_size, tiles_per_row,
    # the terms' kinds, the walk, the tile
    KINDS: tl.constexpr, VARIES: tl.constexpr, AXES: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, group, col, mask = locate(skipped, num_rows, row_size, tiles_per_row, ROWS, GROUPS, 4, SHIFTED, WIDE)
    streams = (0, (x0_seed, x0_offset, x0_group), (z_seed, z_offset, z_group))
    u = affine(  # (1), [R, G, 4]
        terms, coefficients, strides, sizes, streams, row, group, col, mask, num_rows, KINDS, VARIES, AXES
    )
    p = load_tile(pred_ptr, row, col, mask, strides[3], sizes, AXES)  # [R, G, 4]
    grad = load_per_row(scale_ptr, row, num_rows) * (p - u)  # dp = 2 g_b (p - u)
    tl.store(grad_ptr + address(row, col, strides[4], sizes, AXES), grad.to(grad_ptr.dtype.element_ty), mask=mask)


def squared_error(pred: Tensor, terms: Terms) -> Tensor:
    """Return ``sum_j (pred - c1 x1 - c0 x0 - cz z)_bj^2`` of each sample, fp32 ``[B]``; deterministic (no atomics)."""
    if not pred.numel():
        return pred.new_zeros(pred.shape[0], dtype=torch.float32)
    partial = pred.new_empty(grid_over(terms).tiles_per_row, pred.shape[0], dtype=torch.float32)
    launch(_loss_kernel, terms, (pred,), (partial,))
    return sum_over_tiles(partial)


def squared_error_backward(grad: Tensor, pred: Tensor, terms: Terms) -> Tensor:
    """Return ``2 grad_b (pred - c1 x1 - c0 x0 - cz z)``, the gradient of :func:`squared_error`, in pred's dtype."""
    out = torch.empty(pred.shape, dtype=pred.dtype, device=pred.device)
    if out.numel():
        launch(_loss_backward_kernel, terms, (pred, out), ((2.0 * grad.float()).contiguous(),))
    return out
