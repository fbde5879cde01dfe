"""Tiles of the activation kernels, as data: one element is read and written once, so no tile is faster by reuse.

Each thread takes eight elements, 16 bytes of a 16-bit type. No row has been timed on a GPU yet.
"""

from typing import NamedTuple


class Tile(NamedTuple):
    rows: int
    cols: int
    num_warps: int


LONG = Tile(1, 1024, 4)
SHORT = Tile(16, 64, 4)
TILES = (LONG, SHORT)
_SHORTEST = 512


def tile_of(row_size: int) -> Tile:
    """Return the tile for rows of this length; contiguous tensors are one long row."""
    return LONG if row_size >= _SHORTEST else SHORT
