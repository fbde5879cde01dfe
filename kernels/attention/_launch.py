"""What the launchers of the attention kernels share: strides, alignment, dot precision, the device to launch on."""

import contextlib
import math
from contextlib import AbstractContextManager

import torch
from torch import Tensor

_VECTOR = 8  # elements: 16 bytes of a 16-bit type


def unit_rows(x: Tensor | None) -> Tensor | None:
    """x itself if its rows are contiguous, else a contiguous copy: the kernels take any other stride as it is."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def alignment(*tensors: Tensor | None) -> int:
    """The largest divisor of 8 that divides every stride above the rows: 8 also for a head dim of 72."""
    return math.gcd(_VECTOR, *(s for x in tensors if x is not None for s in _outer_strides(x)[:-1]))


def strides(x: Tensor | None, align: int) -> tuple[int, ...] | None:
    """Strides for ``_tile.in_elements``: in units of align elements, times 16.

    Triton compiles a kernel anew for strides that are 1 or no multiple of 16; in this form all are multiples of 16, so
    a new sequence length finds the same kernel, and align carries the alignment that 16 cannot express (D = 72).
    """
    return None if x is None else tuple(16 * (s // align) for s in _outer_strides(x))


def dot_precision(x: Tensor) -> str:
    """The tensor cores' precision for x's dtype: float32 as three TF32 products, or exactly where those are missing."""
    if x.dtype != torch.float32:
        return "tf32"  # no effect on 16-bit operands
    return "ieee" if torch.version.hip else "tf32x3"


def on_device(x: Tensor) -> AbstractContextManager:
    """Make x's device the current one, where Triton launches."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def _outer_strides(x: Tensor) -> tuple[int, ...]:
    return tuple(0 if n == 1 else s for n, s in zip(x.shape, x.stride()))
