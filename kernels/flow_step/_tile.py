"""What the three kernels share: where a tile lies, and the affine combination of x1, x0 and z over it."""

import triton
import triton.language as tl

from .._common.philox import gaussian_groups

ABSENT, GIVEN, DRAWN = 0, 1, 2
_GIVEN = tl.constexpr(GIVEN)
_DRAWN = tl.constexpr(DRAWN)


@triton.jit
def locate(
    num_rows, row_size, tiles_per_row,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """The tile of this program.

    Groups of four are aligned to the element index of the whole tensor, so that a group is one Philox counter; where
    rows do not hold a multiple of four (SHIFTED), a row's first group starts before the row and is masked there.
    Returns row [R] and group [R, G] (int64), col [R, G, 4] within the row (int64 if WIDE), mask [R, G, 4].
    """
    pid = tl.program_id(0)
    row = (pid // tiles_per_row).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    local = (pid % tiles_per_row).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)  # [G]
    first = row * row_size
    group = (first >> 2)[:, None] + local[None, :]
    if not WIDE:
        local = local.to(tl.int32)
    col = (local[:, None] * 4 + tl.arange(0, 4)[None, :])[None, :, :]
    mask = (row < num_rows)[:, None, None] & (col < row_size)
    if SHIFTED:
        col = col - (first & 3).to(col.dtype)[:, None, None]
        mask = (row < num_rows)[:, None, None] & (col >= 0) & (col < row_size)
    return row, group, col, mask


@triton.jit
def address(row, col, strides, sizes, AXES: tl.constexpr):
    """Offsets [R, G, 4] of a tile in a tensor with these strides (the batch's first)."""
    rest = col
    inner = tl.zeros_like(col)
    for axis in tl.static_range(AXES - 1, 0, -1):
        inner += (rest % sizes[axis]) * strides[axis + 1]
        rest = rest // sizes[axis]
    inner += rest * strides[1]
    return (row * strides[0])[:, None, None] + inner


@triton.jit
def per_row(value, stride, row, num_rows):
    """A per-sample fp32 value [R, 1, 1]; stride 0 reads one value for all."""
    return tl.load(value + row * stride, mask=row < num_rows, other=0.0).to(tl.float32)[:, None, None]


@triton.jit
def affine(
    terms, coefficients, strides, sizes, seeds, offsets, row, group, col, mask, num_rows,
    KINDS: tl.constexpr, VARIES: tl.constexpr, AXES: tl.constexpr,
):  # fmt: skip
    """c1 x1 + c0 x0 + cz z over a tile, fp32 [R, G, 4]. Each term is absent, given (read) or drawn (never stored)."""
    total = tl.zeros(mask.shape, tl.float32)
    for i in tl.static_range(3):
        if KINDS[i] != 0:
            if KINDS[i] == _DRAWN:
                x = gaussian_groups(group, seeds[i], offsets[i])
            else:
                x = tl.load(terms[i] + address(row, col, strides[i], sizes, AXES), mask=mask, other=0.0).to(tl.float32)
            if VARIES[i]:
                total += per_row(coefficients[i], 1, row, num_rows) * x
            else:
                total += coefficients[i] * x
    return total
