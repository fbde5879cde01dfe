"""Tiles of the norm kernels, as data.

A program holds whole rows in registers. The rows of the table are a first choice, not the result of a search: compiled
for bf16, they do not spill up to 2,048 columns, and the backward of wider rows does. None has been timed on a GPU yet.
"""

from dataclasses import dataclass

MAX_WIDTH = 16384  # a row stays in the registers of one block
PARTIAL_ROWS = 64  # most rows that share one partial sum: storing and adding it up costs a few per cent of their bytes
PROGRAMS = 128  # fewer rows share a partial sum where there would be fewer programs


@dataclass(frozen=True)
class Config:
    """A tile of rows × columns, columns the next power of two above the width.

    stages: of the loop over tiles. With 2, a tile is loaded to shared memory while the one before it is computed: of a
    row or two alone, too few bytes would be in flight (bench/results/memory_traffic.md).
    """

    rows: int
    columns: int
    num_warps: int
    stages: int = 1


# (most columns): rows and warps of the forward; rows, warps and stages of the backward, which has a loop
_TABLE = {
    64: ((16, 4), (8, 4, 2)),
    128: ((8, 4), (4, 4, 2)),
    256: ((4, 4), (4, 4, 2)),
    512: ((4, 4), (2, 4, 2)),
    1024: ((2, 4), (1, 4, 2)),
    2048: ((1, 4), (1, 4, 2)),
    4096: ((1, 8), (1, 16, 1)),
    8192: ((1, 16), (1, 32, 1)),
    16384: ((1, 32), (1, 32, 1)),
}

WIDTHS = tuple(_TABLE)


def config(width: int, *, backward: bool) -> Config:
    """Return the tile for rows of this width, at most MAX_WIDTH."""
    most = next(columns for columns in WIDTHS if width <= columns)
    columns = max(16, 1 << (width - 1).bit_length())
    rows, *options = _TABLE[most][backward]
    return Config(rows, columns, *options)


def rows_of_partial(groups: int, rows: int) -> int:
    """Return how many rows of a group, of ``rows`` each, share one partial sum of the gradients of scale and shift."""
    return max(1, min(rows, PARTIAL_ROWS, -(-groups * rows // PROGRAMS)))
