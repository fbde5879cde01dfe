"""Compute dot products of Jacobian-vector products with their probes, which are drawn again in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from .._common.tiles import locate, store_row_sums, sum_over_tiles
from ._tile import constexprs, grid_over, probe_groups


@triton.jit(do_not_specialize=["seed", "offset", "start"])
def _dots_kernel(
    # input: [num_rows, row_size]; output: [tiles_per_row, num_rows]
    products_ptr, partial_ptr,
    # the stream, from element start on
    seed: tl.int64, offset: tl.int64, start: tl.int64,
    # sizes, the dtype of the probes, the tile
    num_rows, row_size, tiles_per_row,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    row, group, col, mask = locate(start, num_rows, row_size, tiles_per_row, ROWS, GROUPS, L, True, True)
    offs = row[:, None, None] * row_size + col  # [R, G, L]
    product = tl.load(products_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    terms = product * probe_groups(group, seed, offset, DTYPE, L)  # of (1)
    store_row_sums(partial_ptr, terms, row, num_rows, tiles_per_row)


def dots(products: Tensor, seed: int, offset: int, first: int, distribution: str, dtype: torch.dtype) -> Tensor:
    """Return ``sum_j probes_kbj products_kbj``, fp32 ``[K, B]``; deterministic (no atomics), no probe in memory.

    products: ``[K, B, ...]`` for probes ``first .. first + K - 1`` of the stream, which were rounded to dtype.
    """
    shape, products = products.shape[:2], products.contiguous()
    if not products.numel():
        return products.new_zeros(shape, dtype=torch.float32)
    num_rows = shape.numel()
    row_size = products.numel() // num_rows
    start = first * shape[1] * row_size
    programs, tiles_per_row, options = grid_over(num_rows, row_size, start, distribution)
    partial = products.new_empty(tiles_per_row, num_rows, dtype=torch.float32)
    with on_device(products):
        _dots_kernel[(programs,)](
            products, partial, seed, offset, start, num_rows, row_size, tiles_per_row,
            **constexprs(dtype, distribution), **options,
        )  # fmt: skip
    return sum_over_tiles(partial).view(shape)
