"""Launch arguments that the gate kernels share."""

from typing import Any, NamedTuple

import triton
from torch import Tensor

from ..attention._launch import alignment, strides, unit_rows
from .config import tile_for


class Walk(NamedTuple):
    """Tensors as a kernel takes them, their strides, the grid over ``[G, M, D]`` and the constexprs."""

    tensors: tuple[Tensor | None, ...]
    strides: tuple[tuple[int, ...] | None, ...]
    size: tuple[int, int, int]
    tiles_m: int
    grid: tuple[int]
    options: dict[str, Any]


def walk(gate: Tensor, y: Tensor, *others: Tensor | None) -> Walk:
    """Lay out a launch over y ``[G, M, D]``. others: of the shape of y or gate, perhaps with a leading K.

    Groups of one row become the rows of one group, so that programs are full.
    """
    tensors = gate, y, *others
    if y.shape[1] == 1:
        tensors = tuple(x if x is None else x.transpose(-3, -2) for x in tensors)
    tensors = tuple(map(unit_rows, tensors))
    G, M, D = tensors[1].shape
    tile, align = tile_for(M), alignment(*tensors)
    tiles_m = triton.cdiv(M, tile.block_m)
    options = {
        "D": D, "SHARED": tensors[0].shape[1] != M, "ALIGN": align,
        "BLOCK_M": tile.block_m, "BLOCK_D": tile.block_d, "num_warps": tile.num_warps,
    }  # fmt: skip
    grid = (G * tiles_m * triton.cdiv(D, tile.block_d),)
    return Walk(tensors, tuple(strides(x, align) for x in tensors), (G, M, D), tiles_m, grid, options)


def num_tangents(*tensors: Tensor | None) -> int:
    """Return K, 0 if all of these are None."""
    return next((x.shape[0] for x in tensors if x is not None), 0)


def shared_by_rows(x: Tensor, *modulations: Tensor | None) -> tuple[bool, ...]:
    """Return for each of these whether the rows of a group of x share it."""
    return tuple(m is not None and m.shape[1] != x.shape[1] for m in modulations)
