"""Compute x_t = α x1 + β x0 + γ z in one pass; with other coefficients, the velocity target."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.tiles import locate
from ._launch import Terms, launch
from ._tile import STREAM_SCALARS, address, affine


@triton.jit(do_not_specialize=STREAM_SCALARS)
def _interpolate_kernel(
    # inputs: (x1, x0, z), None for a term that is not read, and their coefficients
    terms, coefficients,
    # output
    out_ptr,
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
    xt = affine(  # (1), [R, G, 4]
        terms, coefficients, strides, sizes, streams, row, group, col, mask, num_rows, KINDS, VARIES, AXES
    )
    tl.store(out_ptr + address(row, col, strides[3], sizes, AXES), xt.to(out_ptr.dtype.element_ty), mask=mask)


def interpolate(terms: Terms, dtype: torch.dtype) -> Tensor:
    """Return ``c1 x1 + c0 x0 + cz z`` in dtype, as a new contiguous tensor of x1's shape."""
    out = torch.empty(terms.x1.shape, dtype=dtype, device=terms.x1.device)
    if out.numel():
        launch(_interpolate_kernel, terms, (out,), ())
    return out
