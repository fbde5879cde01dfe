"""x_t = alpha x1 + beta x0 + gamma z in one pass; also the velocity target, which has other coefficients."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Terms, launch
from ._tile import address, affine, locate


@triton.jit(do_not_specialize=["x0_seed", "x0_offset", "z_seed", "z_offset"])
def _interpolate_kernel(
    terms, coefficients, out_ptr,
    x0_seed: tl.int64, x0_offset: tl.int64, z_seed: tl.int64, z_offset: tl.int64,
    strides, sizes, num_rows, row_size, tiles_per_row,
    KINDS: tl.constexpr, VARIES: tl.constexpr, AXES: tl.constexpr,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    row, group, col, mask = locate(num_rows, row_size, tiles_per_row, ROWS, GROUPS, SHIFTED, WIDE)
    seeds, offsets = (x0_seed, x0_seed, z_seed), (x0_offset, x0_offset, z_offset)
    xt = affine(
        terms, coefficients, strides, sizes, seeds, offsets, row, group, col, mask, num_rows, KINDS, VARIES, AXES
    )
    tl.store(out_ptr + address(row, col, strides[3], sizes, AXES), xt.to(out_ptr.dtype.element_ty), mask=mask)


def interpolate(terms: Terms, dtype: torch.dtype) -> Tensor:
    """``c1 x1 + c0 x0 + cz z`` as a new contiguous tensor of the shape of x1, in dtype."""
    out = torch.empty(terms.x1.shape, dtype=dtype, device=terms.x1.device)
    if out.numel():
        launch(_interpolate_kernel, terms, (out,), ())
    return out
