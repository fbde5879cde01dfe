"""Launch the three kernels of this family: the terms of a call, and the arguments that all kernels share."""

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from .._common.launch import Grid, grid, on_device
from ..noise.gaussian import gaussian
from ._layout import layout
from ._tile import ABSENT, DRAWN, GIVEN, LANES


class Terms(NamedTuple):
    """An affine combination ``c1 x1 + c0 x0 + cz z``.

    x1: ``[B, ...]``; x0, z: like x1, or None if the term is drawn or absent. c1, c0, cz: fp32 ``[B]`` on the device, or
    a 0-d CPU tensor for a constant. x0_stream, z_stream: ``(seed, offset, first_sample)`` of a drawn term, else empty.
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

    @property
    def starts(self) -> tuple[int, int]:
        """The elements of their streams at which x0 and z start; 0 for a term that is not drawn."""
        x0, z = (stream[2] * _row_size(self.x1) if stream else 0 for stream in (self.x0_stream, self.z_stream))
        return x0, z

    def in_phase(self) -> "Terms":
        """Return terms whose drawn noise has one alignment to groups, drawing z to memory if x0 and z differ in it."""
        x0_start, z_start = self.starts
        if not (self.x0_stream and self.z_stream) or (x0_start - z_start) % LANES == 0:
            return self
        seed, offset, _ = self.z_stream
        z = gaussian(self.x1.numel(), seed, offset, torch.float32, self.x1.device, z_start)
        return self._replace(z=z.view(self.x1.shape), z_stream=())


def grid_over(terms: Terms) -> Grid:
    return grid_of(terms.x1.shape[0], _row_size(terms.x1), terms.shifted)


def grid_of(num_rows: int, row_size: int, shifted: bool) -> Grid:
    return grid(num_rows, row_size, LANES, shifted, groups=-(-row_size // LANES) + shifted)


def launch(kernel: triton.JITFunction, terms: Terms, like_x1: tuple[Tensor, ...], per_row: tuple[Tensor, ...]) -> None:
    """Launch kernel over the rows of x1. like_x1: more tensors of x1's shape; per_row: contiguous fp32, per sample."""
    terms = terms.in_phase()
    where = layout(terms.x1, terms.x0, terms.z, *like_x1)
    programs, tiles_per_row, options = grid_over(terms)
    coefficients = tuple(c.contiguous() if c.ndim else c.item() for c in (terms.c1, terms.c0, terms.cz))
    with on_device(terms.x1):
        kernel[(programs,)](
            where.tensors[:3],
            coefficients,
            *where.tensors[3:],
            *per_row,
            *(terms.x0_stream or (0, 0))[:2],
            *(terms.z_stream or (0, 0))[:2],
            *(start // LANES for start in terms.starts),
            max(start % LANES for start in terms.starts),
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
