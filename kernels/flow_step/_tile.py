"""Tile code that the three kernels share: addresses, per-sample values, the affine combination of x1, x0 and z.

Shapes: R rows (samples) of a tile, G groups of a row, 4 elements of a group.
"""

import triton
import triton.language as tl

from .._common.philox import gaussian_groups

LANES = 4  # elements of a group: the four words of a counter
ABSENT, GIVEN, DRAWN = 0, 1, 2
_DRAWN = tl.constexpr(DRAWN)
STREAM_SCALARS = ["x0_seed", "x0_offset", "z_seed", "z_offset", "x0_group", "z_group", "skipped"]  # change every step


@triton.jit
def address(row, col, strides, sizes, AXES: tl.constexpr):
    """Return the offsets [R, G, 4] of a tile in a tensor. strides: the batch's, then the inner axes'."""
    rest = col
    inner = tl.zeros_like(col)
    for axis in tl.static_range(AXES - 1, 0, -1):
        inner += (rest % sizes[axis]) * strides[axis + 1]
        rest = rest // sizes[axis]
    inner += rest * strides[1]
    return (row * strides[0])[:, None, None] + inner  # [R, G, 4]


@triton.jit
def load_tile(x_ptr, row, col, mask, strides, sizes, AXES: tl.constexpr):
    """Load a tile [R, G, 4] as fp32, zeros outside the mask."""
    return tl.load(x_ptr + address(row, col, strides, sizes, AXES), mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_per_row(c_ptr, row, num_rows):
    """Load one fp32 value per sample, [R, 1, 1]."""
    return tl.load(c_ptr + row, mask=row < num_rows, other=0.0).to(tl.float32)[:, None, None]


@triton.jit
def affine(
    terms, coefficients, strides, sizes, streams, row, group, col, mask, num_rows,
    KINDS: tl.constexpr, VARIES: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    """Return c1 x1 + c0 x0 + cz z over a tile, fp32 [R, G, 4], equation (1).

    Each term is absent, given (loaded) or drawn (made in registers). VARIES: the coefficient is a pointer to one value
    per sample, else a scalar. streams: ``(seed, offset, first group)`` of each drawn term.
    """
    total = tl.zeros(mask.shape, tl.float32)
    for i in tl.static_range(3):
        if KINDS[i] != 0:
            if KINDS[i] == _DRAWN:
                x = gaussian_groups(streams[i][2] + group, streams[i][0], streams[i][1])  # [R, G, 4]
            else:
                x = load_tile(terms[i], row, col, mask, strides[i], sizes, AXES)
            if VARIES[i]:
                total += load_per_row(coefficients[i], row, num_rows) * x
            else:
                total += coefficients[i] * x
    return total
