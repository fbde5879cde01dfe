"""Host side of a launch: the device to launch on, and the grid over rows cut into groups that share a counter."""

import contextlib
from contextlib import AbstractContextManager
from typing import NamedTuple

import torch
import triton
from torch import Tensor

_ELEMENTS = 2048  # per program: 16 elements a thread, no spill in any variant (compile report)
_NUM_WARPS = 4


class Grid(NamedTuple):
    """Rows cut into programs, and the constexprs and launch options that describe the cut to a kernel."""

    programs: int
    tiles_per_row: int
    options: dict[str, int]  # ROWS, GROUPS, num_warps


def grid(num_rows: int, row_size: int, lanes: int, shifted: bool, groups: int) -> Grid:
    """Cut ``[num_rows, row_size]`` elements into tiles of ROWS rows by GROUPS groups of ``lanes`` elements.

    Long rows take several tiles, short rows share one. shifted: rows may start inside a group, so a row may need one
    more group. groups: the groups that a row is taken to need when the tile is chosen.
    """
    most = _ELEMENTS // lanes
    per_tile = min(most, 1 << (groups - 1).bit_length())
    rows = most // per_tile
    tiles_per_row = triton.cdiv(row_size + (lanes - 1) * shifted, lanes * per_tile)
    options = {"ROWS": rows, "GROUPS": per_tile, "num_warps": _NUM_WARPS}
    return Grid(triton.cdiv(num_rows, rows) * tiles_per_row, tiles_per_row, options)


def on_device(x: Tensor) -> AbstractContextManager[object]:
    """Make x's device the current one, on which Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()
