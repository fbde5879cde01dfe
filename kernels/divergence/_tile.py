"""What both kernels share: where a tile of probes lies, and the probes of a tile, in registers."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .._common.philox import gaussian_groups, lanes, philox_words
from .config import LANES, tile

TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_BITS = tl.constexpr(LANES["rademacher"])


@triton.jit
def locate(
    start, num_rows, row_size, tiles_per_row, ROWS: tl.constexpr, GROUPS: tl.constexpr, L: tl.constexpr
):  # fmt: skip
    """The tile of this program, in groups of L elements that share a counter; a row may start inside a group.

    start: element index of the first row's first element. Returns row [R], group [R, G], offs [R, G, L] in a contiguous
    [num_rows, row_size] tensor (all int64) and mask [R, G, L].
    """
    pid = tl.program_id(0)
    row = (pid // tiles_per_row).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = start + row * row_size
    local = (pid % tiles_per_row).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)
    group = (first // L)[:, None] + local[None, :]
    col = group[:, :, None] * L + tl.arange(0, L)[None, None, :] - first[:, None, None]
    mask = (row < num_rows)[:, None, None] & (col >= 0) & (col < row_size)
    return row, group, row[:, None, None] * row_size + col, mask


@triton.jit
def probe_groups(group, seed, offset, DTYPE: tl.constexpr, L: tl.constexpr):
    """Probes of these groups, rounded to DTYPE, as fp32. group: int64 [R, G]; returns [R, G, L]."""
    if L == _BITS:
        w0, w1, w2, w3 = philox_words(group, seed, offset)
        words = lanes(w0, w1, w2, w3)  # [R, G, 4]
        bits = (words[:, :, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, None, :]) & 1
        probe = tl.reshape(1.0 - 2.0 * bits.to(tl.float32), group.shape + (L,))
    else:
        probe = gaussian_groups(group, seed, offset).to(DTYPE).to(tl.float32)
    return probe


class Grid(NamedTuple):
    """How rows are cut into programs, and the constexprs that say so to a kernel."""

    programs: int
    tiles_per_row: int
    options: dict[str, int]


def grid(num_rows: int, row_size: int, start: int, distribution: str) -> Grid:
    """The grid over ``[num_rows, row_size]`` elements of a stream from element ``start`` on."""
    L = LANES[distribution]
    shape = tile(row_size, L)
    aligned = start % L == 0 and (row_size % L == 0 or num_rows == 1)
    tiles_per_row = triton.cdiv(row_size + (0 if aligned else L - 1), shape.groups * L)
    options = {"ROWS": shape.rows, "GROUPS": shape.groups, "L": L, "num_warps": shape.num_warps}
    return Grid(triton.cdiv(num_rows, shape.rows) * tiles_per_row, tiles_per_row, options)
