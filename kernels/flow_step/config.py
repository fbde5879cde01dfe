"""Tile shapes of the flow step: ROWS samples of GROUPS groups of four elements, the four that share a counter."""

from typing import NamedTuple


class Tile(NamedTuple):
    rows: int
    groups: int
    num_warps: int


_MAX_GROUPS = 512  # 2,048 elements and 4 warps: 16 elements a thread, no spill in any variant (compile report)
_NUM_WARPS = 4


def tile(row_size: int, shifted: bool) -> Tile:
    """Long rows are cut into tiles; short rows share one. shifted: rows may start inside a group."""
    groups = -(-row_size // 4) + shifted
    groups = min(_MAX_GROUPS, 1 << (groups - 1).bit_length())
    return Tile(_MAX_GROUPS // groups, groups, _NUM_WARPS)
