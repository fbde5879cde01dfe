"""Shared by the activation kernels: the tile of a program, φ and its derivatives, the launch.

Shapes: R rows and C columns of a tile. Numbers in comments are the equations of README.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from . import reference
from .config import tile_of
from .rows import as_rows

_SLOPE = tl.constexpr(reference.SLOPE)
_CUBIC = tl.constexpr(reference.CUBIC)
_SATURATED = tl.constexpr(reference.SATURATED)
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_PER_SQRT_TWO_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def locate(num_rows, row_size, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Return row [R, 1], col [1, C] (int64) and mask [R, C] of this program."""
    pid = tl.program_id(0).to(tl.int64)
    per_row = tl.cdiv(row_size, COLS)
    row = (pid // per_row * ROWS + tl.arange(0, ROWS))[:, None]
    col = (pid % per_row * COLS + tl.arange(0, COLS))[None, :]
    return row, col, (row < num_rows) & (col < row_size)


@triton.jit
def load(ptr, offs, mask):  # [R, C]
    return tl.load(ptr + offs, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store(ptr, offs, x, mask):
    tl.store(ptr + offs, x.to(ptr.dtype.element_ty), mask=mask)


@triton.jit
def curve(x, KIND: tl.constexpr):
    """Return φ, φ' and φ'' at x."""
    if KIND == "gelu":
        cumulative = 0.5 + 0.5 * tl.erf(x * _SQRT_HALF)  # (3)
        p = tl.exp(-0.5 * x * x) * _PER_SQRT_TWO_PI
        phi, slope, curvature = x * cumulative, cumulative + x * p, p * (2.0 - x * x)
    else:
        y = tl.abs(x)
        if KIND == "silu":
            v, dv, m = y, 1.0, 2.0
        else:
            y = tl.minimum(y, _SATURATED)
            square = _CUBIC * y * y
            v = _SLOPE * y * (1.0 + square)  # (4) at |x|
            dv = _SLOPE * (1.0 + 3.0 * square)
            m = 4.0 * dv - 2.0 * _SLOPE
        s = 1.0 / (1.0 + tl.exp(v))  # (9)
        d = s * (1.0 - s)
        q = s - y * dv * d
        phi = x * tl.where(x < 0, s, 1.0 - s)
        slope = tl.where(x < 0, q, 1.0 - q)
        curvature = d * (m - y * dv * dv * (1.0 - 2.0 * s))
    return phi, slope, curvature


class Problem:
    """The operands of a launch as rows, their strides and sizes."""

    def __init__(self, inputs: Sequence[Tensor | None], ndim: int) -> None:
        self.rows = as_rows(inputs, ndim)
        first = next(y for y in self.rows if y is not None)
        self.num_rows, self.row_size = first.shape[-2:]
        self.device_of = first

    @property
    def strides(self) -> tuple[tuple[int, int] | None, ...]:
        """Strides of the axis K and of rows; 0 along an axis that is not walked, which triggers no compilation."""
        return tuple(None if y is None else self._strides(y) for y in self.rows)

    def _strides(self, y: Tensor) -> tuple[int, int]:
        of_tangents = y.stride(0) if y.ndim == 3 and y.shape[0] > 1 else 0
        return of_tangents, (y.stride(-2) if self.num_rows > 1 else 0)

    def launch(self, kernel: Any, outputs: Sequence[Tensor | None], num_tangents: int, kind: str) -> None:
        """Launch over tiles; outputs are contiguous."""
        if not self.num_rows * self.row_size:
            return
        rows, cols, num_warps = tile_of(self.row_size)
        grid = (triton.cdiv(self.num_rows, rows) * triton.cdiv(self.row_size, cols),)
        with on_device(self.device_of):
            kernel[grid](
                *self.rows, *outputs,
                self.strides, num_tangents, self.num_rows, self.row_size, self.num_rows * self.row_size,
                KIND=kind, ROWS=rows, COLS=cols, num_warps=num_warps,
            )  # fmt: skip


def empty(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(like.shape, dtype=dtype, device=like.device)
