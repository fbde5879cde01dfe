"""Tiles of rows whose elements share Philox counters in groups, and row sums over the tiles of a row.

Shapes: R rows of a tile, G groups of a row, L elements of a group.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.constexpr_function
def _log2(n):
    return n.bit_length() - 1


@triton.jit
def locate(
    start, num_rows, row_size, tiles_per_row,
    ROWS: tl.constexpr, GROUPS: tl.constexpr, L: tl.constexpr, SHIFTED: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Locate this program's tile in ``[num_rows, row_size]`` elements, the first being element ``start`` of a stream.

    Groups are aligned to the element index in the stream, so that a group is one Philox counter; L is a power of two.
    SHIFTED: a row may start inside a group; its first group then begins before the row and is masked there. Otherwise
    start is taken to be 0.
    Returns row [R] and group [R, G] (int64), col [R, G, L] within the row (int64 if WIDE) and mask [R, G, L].
    """
    pid = tl.program_id(0)
    row = (pid // tiles_per_row).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    local = (pid % tiles_per_row).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)  # [G]
    first = row * row_size  # [R]
    if SHIFTED:
        first += start
    group = (first >> _log2(L))[:, None] + local[None, :]  # [R, G]
    if not WIDE:
        local = local.to(tl.int32)
    col = (local[:, None] * L + tl.arange(0, L)[None, :])[None, :, :]  # [1, G, L]
    mask = (row < num_rows)[:, None, None] & (col < row_size)  # [R, G, L]
    if SHIFTED:
        col = col - (first & (L - 1)).to(col.dtype)[:, None, None]  # [R, G, L]
        mask = (row < num_rows)[:, None, None] & (col >= 0) & (col < row_size)
    return row, group, col, mask


@triton.jit
def store_row_sums(partial_ptr, x, row, num_rows, tiles_per_row):
    """Sum x [R, G, L] over each row's part in this tile and store it to partial ``[tiles_per_row, num_rows]``."""
    pid_col = (tl.program_id(0) % tiles_per_row).to(tl.int64)
    sums = tl.sum(tl.sum(x, axis=2), axis=1)  # [R]
    tl.store(partial_ptr + pid_col * num_rows + row, sums, mask=row < num_rows)


def sum_over_tiles(partial: Tensor) -> Tensor:
    """Add the partial sums ``[tiles_per_row, num_rows]`` in a fixed order: the same input gives the same bits."""
    return partial[0] if partial.shape[0] == 1 else partial.sum(0)
