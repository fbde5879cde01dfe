"""Dot products of Jacobian products with their probes, which are drawn again in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._tile import TYPES, grid, locate, probe_groups


@triton.jit(do_not_specialize=["seed", "offset", "start"])
def _dots_kernel(
    products_ptr, partial_ptr, seed: tl.int64, offset: tl.int64, start: tl.int64, num_rows, row_size, tiles_per_row,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    row, group, offs, mask = locate(start, num_rows, row_size, tiles_per_row, ROWS, GROUPS, L)
    product = tl.load(products_ptr + offs, mask=mask, other=0.0).to(tl.float32)
    terms = product * probe_groups(group, seed, offset, DTYPE, L)
    pid_col = (tl.program_id(0) % tiles_per_row).to(tl.int64)
    dot = tl.sum(tl.sum(terms, axis=2), axis=1)  # [R]
    tl.store(partial_ptr + pid_col * num_rows + row, dot, mask=row < num_rows)


def dots(products: Tensor, seed: int, offset: int, first: int, distribution: str, dtype: torch.dtype) -> Tensor:
    """``sum_j probes_kbj products_kbj``, fp32 ``[K, B]``, deterministic (no atomics); the probes are never in memory.

    products: ``[K, B, ...]`` for probes ``first .. first + K - 1`` of the stream, which were rounded to dtype.
    """
    shape, products = products.shape[:2], products.contiguous()
    if not products.numel():
        return products.new_zeros(shape, dtype=torch.float32)
    num_rows = shape.numel()
    row_size = products.numel() // num_rows
    start = first * shape[1] * row_size
    programs, tiles_per_row, options = grid(num_rows, row_size, start, distribution)
    partial = products.new_empty(tiles_per_row, num_rows, dtype=torch.float32)
    _dots_kernel[(programs,)](
        products, partial, seed, offset, start, num_rows, row_size, tiles_per_row, DTYPE=TYPES[dtype], **options
    )
    return (partial[0] if tiles_per_row == 1 else partial.sum(0)).view(shape)
