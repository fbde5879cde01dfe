"""Tiles of the gate kernels, as data, chosen from compiler output (bench/results/compile_report.md); none timed yet."""

from dataclasses import replace
from typing import NamedTuple

from ..norm import config as norm


class Tile(NamedTuple):
    """A program's rows of a group and columns; 16 elements a thread."""

    block_m: int
    block_d: int
    num_warps: int


NORM_ROWS = 32  # most rows of a program of the gated norm's forward, which loads what they share once

# Many rows share a load of the gate and a partial sum of its gradient: 64 rows keep both below 2 % of the traffic.
LONG = Tile(64, 64, 8)
SHORT = Tile(8, 512, 8)


def tile_for(num_rows: int) -> Tile:
    """Return the tile for groups of this many rows."""
    return LONG if num_rows > 2 * SHORT.block_m else SHORT


def norm_tile(width: int, *, backward: bool) -> norm.Config:
    """Return the norm's tile: one row where the forward would spill on sm_100, warps enough for the backward."""
    tile = norm.config(width, backward=backward)
    if backward and tile.columns == 2048:
        return replace(tile, num_warps=8)
    return replace(tile, rows=1) if not backward and tile.columns == 1024 else tile
