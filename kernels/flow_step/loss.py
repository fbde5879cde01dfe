"""The squared error against a target that is rebuilt in registers, and its gradient for the prediction."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Terms, launch, tiles_per_row
from ._tile import address, affine, locate, per_row


@triton.jit(do_not_specialize=["x0_seed", "x0_offset", "z_seed", "z_offset"])
def _loss_kernel(
    terms, coefficients, pred_ptr, partial_ptr,
    x0_seed: tl.int64, x0_offset: tl.int64, z_seed: tl.int64, z_offset: tl.int64,
    strides, sizes, num_rows, row_size, tiles_per_row,
    KINDS: tl.constexpr, VARIES: tl.constexpr, AXES: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, group, col, mask = locate(num_rows, row_size, tiles_per_row, ROWS, GROUPS, SHIFTED, WIDE)
    seeds, offsets = (x0_seed, x0_seed, z_seed), (x0_offset, x0_offset, z_offset)
    u = affine(
        terms, coefficients, strides, sizes, seeds, offsets, row, group, col, mask, num_rows, KINDS, VARIES, AXES
    )
    p = tl.load(pred_ptr + address(row, col, strides[3], sizes, AXES), mask=mask, other=0.0).to(tl.float32)
    r = tl.where(mask, p - u, 0.0)
    energy = tl.sum(tl.sum(r * r, axis=2), axis=1)  # [R]
    pid_col = (tl.program_id(0) % tiles_per_row).to(tl.int64)
    tl.store(partial_ptr + pid_col * num_rows + row, energy, mask=row < num_rows)


@triton.jit(do_not_specialize=["x0_seed", "x0_offset", "z_seed", "z_offset"])
def _loss_backward_kernel(
    terms, coefficients, pred_ptr, grad_ptr, scale_ptr,
    x0_seed: tl.int64, x0_offset: tl.int64, z_seed: tl.int64, z_offset: tl.int64,
    strides, sizes, num_rows, row_size, tiles_per_row,
    KINDS: tl.constexpr, VARIES: tl.constexpr, AXES: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, group, col, mask = locate(num_rows, row_size, tiles_per_row, ROWS, GROUPS, SHIFTED, WIDE)
    seeds, offsets = (x0_seed, x0_seed, z_seed), (x0_offset, x0_offset, z_offset)
    u = affine(
        terms, coefficients, strides, sizes, seeds, offsets, row, group, col, mask, num_rows, KINDS, VARIES, AXES
    )
    p = tl.load(pred_ptr + address(row, col, strides[3], sizes, AXES), mask=mask, other=0.0).to(tl.float32)
    grad = per_row(scale_ptr, 1, row, num_rows) * (p - u)
    tl.store(grad_ptr + address(row, col, strides[4], sizes, AXES), grad.to(grad_ptr.dtype.element_ty), mask=mask)


def squared_error(pred: Tensor, terms: Terms) -> Tensor:
    """``sum_j (pred - c1 x1 - c0 x0 - cz z)_bj^2`` for each sample b, fp32 ``[B]``, deterministic (no atomics)."""
    if not pred.numel():
        return pred.new_zeros(pred.shape[0], dtype=torch.float32)
    partial = pred.new_empty(tiles_per_row(terms), pred.shape[0], dtype=torch.float32)
    launch(_loss_kernel, terms, (pred,), (partial,))
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)


def squared_error_backward(grad: Tensor, pred: Tensor, terms: Terms) -> Tensor:
    """``2 grad_b (pred - c1 x1 - c0 x0 - cz z)``, the gradient of :func:`squared_error`, in pred's dtype."""
    out = torch.empty(pred.shape, dtype=pred.dtype, device=pred.device)
    if out.numel():
        launch(_loss_backward_kernel, terms, (pred, out), ((2.0 * grad.float()).contiguous(),))
    return out
