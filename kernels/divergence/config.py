"""Tile shapes of the divergence kernels: ROWS samples of GROUPS groups, each of the elements that share a counter."""

from typing import NamedTuple

LANES = {"rademacher": 128, "gaussian": 4}  # elements a counter: 128 bits, or four words
_ELEMENTS = 2048  # a program, with 4 warps: 16 elements a thread
_NUM_WARPS = 4


class Tile(NamedTuple):
    rows: int
    groups: int
    num_warps: int


def tile(row_size: int, lanes: int) -> Tile:
    """Long rows are cut into tiles; short rows share one."""
    most = _ELEMENTS // lanes
    groups = -(-(row_size + lanes - 1) // lanes)  # a row may start inside a group
    groups = min(most, 1 << (groups - 1).bit_length())
    return Tile(most // groups, groups, _NUM_WARPS)
