"""Arguments that all attention launchers pass: strides, alignment, dot precision."""

import math

import torch
from torch import Tensor

_LARGE = 1024.0  # float32 holds a log-sum-exp of this size to 6e-5, which is then P's relative error
_VECTOR = 8  # elements: 16 bytes of a 16-bit type


def unit_rows(x: Tensor | None) -> Tensor | None:
    """Return x if its rows are contiguous, else a contiguous copy. The kernels take any other stride as it is."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def cast(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Return x in dtype. Operands of two dtypes in one kernel need more shared memory than an H100 has."""
    return x if x is None else x.to(dtype)


def mask_base(mask: Tensor | None) -> Tensor | None:
    """Return the base of (15), ``[B, Hq, Nq]`` in float32: each row's largest entry if it is large, else 0.

    mask: an expanded view ``[B, Hq, Nq, Nk]``. None without an additive mask.
    """
    if mask is None or mask.dtype == torch.bool:
        return None
    own = mask[tuple(slice(0, 1) if stride == 0 else slice(None) for stride in mask.stride())]
    top = own.amax(-1).float()
    base = torch.where(top.isfinite() & (top.abs() > _LARGE), top, 0.0)
    return base.expand(mask.shape[:-1]).contiguous()


def alignment(*tensors: Tensor | None) -> int:
    """Return the largest divisor of 8 that divides every stride but the last: 8 for a head dim of 72 too."""
    return math.gcd(_VECTOR, *(s for x in tensors if x is not None for s in _outer_strides(x)[:-1]))


def strides(x: Tensor | None, align: int) -> tuple[int, ...] | None:
    """Return the strides for ``_tile.in_elements``: in units of align elements, times 16.

    Triton recompiles a kernel for strides that are 1 or no multiple of 16. In this form all are multiples of 16, so a
    new sequence length reuses the compiled kernel; align carries alignments that 16 cannot express (D = 72).
    """
    return None if x is None else tuple(16 * (s // align) for s in _outer_strides(x))


def dot_precision(x: Tensor) -> str:
    """Return the precision of tl.dot: float32 as three TF32 GEMMs, or exactly on AMD, which has no TF32x3."""
    if x.dtype != torch.float32:
        return "tf32"  # no effect on 16-bit operands
    return "ieee" if torch.version.hip else "tf32x3"


def _outer_strides(x: Tensor) -> tuple[int, ...]:
    return tuple(0 if n == 1 else s for n, s in zip(x.shape, x.stride()))
