"""Launch the three kernels of this family: the terms of a call, and the arguments that all kernels share."""

from typing import NamedTuple

import triton
from torch import Tensor

from .._common.launch import Grid, grid, on_device
from ._layout import layout
from ._tile import ABSENT, DRAWN, GIVEN, LANES


class Terms(NamedTuple):
    """An affine combination ``c1 x1 + c0 x0 + cz z``.

    x1: ``[B, ...]``; x0, z: like x1, or None if the term is drawn or absent. c1, c0, cz: fp32 ``[B]`` on the device, or
    a 0-d CPU tensor for a constant. x0_stream, z_stream: ``(seed, offset)`` of a drawn term, else empty.
    """

    x1: Tensor
    x0: Tensor | None
    z: Tensor | None
    c1: Tensor
    c0: Tensor
    cz: Tensor
    x0_stream: tuple[int, ...] = ()
    z_stream: tuple[int, ...] = ()

    @property
    def kinds(self) -> tuple[int, int, int]:
        return GIVEN, _kind(self.x0, self.x0_stream), _kind(self.z, self.z_stream)

    @property
    def shifted(self) -> bool:
        """True if rows may start inside a group of four elements that share a counter."""
        return DRAWN in self.kinds and _row_size(self.x1) % LANES != 0


def grid_over(terms: Terms) -> Grid:
    return grid_of(terms.x1.shape[0], _row_size(terms.x1), terms.shifted)


def grid_of(num_rows: int, row_size: int, shifted: bool) -> Grid:
    return grid(num_rows, row_size, LANES, shifted, groups=-(-row_size // LANES) + shifted)


def launch(kernel: triton.JITFunction, terms: Terms, like_x1: tuple[Tensor, ...], per_row: tuple[Tensor, ...]) -> None:
    """Launch kernel over the rows of x1. like_x1: more tensors of x1's shape; per_row: contiguous fp32, per sample."""
    where = layout(terms.x1, terms.x0, terms.z, *like_x1)
    programs, tiles_per_row, options = grid_over(terms)
    coefficients = tuple(c.contiguous() if c.ndim else c.item() for c in (terms.c1, terms.c0, terms.cz))
    with on_device(terms.x1):
        kernel[(programs,)](
            where.tensors[:3],
            coefficients,
            *where.tensors[3:],
            *per_row,
            *(terms.x0_stream or (0, 0)),
            *(terms.z_stream or (0, 0)),
            where.strides,
            where.sizes,
            terms.x1.shape[0],
            _row_size(terms.x1),
            tiles_per_row,
            KINDS=terms.kinds,
            VARIES=tuple(isinstance(c, Tensor) for c in coefficients),
            AXES=len(where.sizes),
            SHIFTED=terms.shifted,
            WIDE=where.wide,
            **options,
        )


def _kind(x: Tensor | None, stream: tuple[int, ...]) -> int:
    if x is not None:
        return GIVEN
    return DRAWN if stream else ABSENT


def _row_size(x: Tensor) -> int:
    return x.numel() // max(1, x.shape[0])
