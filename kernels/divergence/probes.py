"""Write probes to memory, each sample's multiplied by a number if one is given."""

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from .._common.tiles import locate
from ._tile import constexprs, grid_over, probe_groups


@triton.jit(do_not_specialize=["seed", "offset", "start"])
def _probes_kernel(
    # input: one factor per row, or None; output: [num_rows, row_size]
    c_ptr, out_ptr,
    # the stream, from element start on
    seed: tl.int64, offset: tl.int64, start: tl.int64,
    # sizes, the dtype of the probes, the tile
    num_rows, row_size, tiles_per_row,
    DTYPE: tl.constexpr, ROWS: tl.constexpr, GROUPS: tl.constexpr, L: tl.constexpr,
):  # fmt: skip
    row, group, col, mask = locate(start, num_rows, row_size, tiles_per_row, ROWS, GROUPS, L, True, True)
    offs = row[:, None, None] * row_size + col  # [R, G, L]
    out = probe_groups(group, seed, offset, DTYPE, L)
    if c_ptr is not None:
        out *= tl.load(c_ptr + row, mask=row < num_rows, other=0.0)[:, None, None]
    tl.store(out_ptr + offs, out.to(out_ptr.dtype.element_ty), mask=mask)


def probes(
    shape: Sequence[int],
    seed: int,
    offset: int,
    first: int,
    distribution: str,
    dtype: torch.dtype,
    device: torch.device,
    scale: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """Return probes ``first .. first + K - 1`` of a stream, ``[K, B, ...]`` = shape, rounded to dtype.

    With scale ``[K, B]``: ``scale_kb probes_kbj`` in out_dtype, the adjoint of :func:`reduce.dots`.
    """
    out = torch.empty(tuple(shape), dtype=out_dtype or dtype, device=device)
    if not out.numel():
        return out
    start = first * math.prod(shape[1:])
    num_rows = 1 if scale is None else shape[0] * shape[1]
    row_size = out.numel() // num_rows
    programs, tiles_per_row, options = grid_over(num_rows, row_size, start, distribution)
    c = None if scale is None else scale.float().contiguous()
    with on_device(out):
        _probes_kernel[(programs,)](
            c, out, seed, offset, start, num_rows, row_size, tiles_per_row, **constexprs(dtype, distribution), **options
        )
    return out
