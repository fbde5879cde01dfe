"""Walk tensors of one logical shape together: a batch axis, then as few inner axes as their strides allow."""

from typing import NamedTuple

import torch
from torch import Tensor

MAX_INNER_AXES = 4
_INT32_MAX = 2**31 - 1


class Layout(NamedTuple):
    """sizes: of the inner axes; strides: per tensor, the batch's then the inner axes', or None; wide: use int64."""

    tensors: tuple[Tensor | None, ...]
    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...] | None, ...]
    wide: bool


def layout(*tensors: Tensor | None) -> Layout:
    """Merge the inner axes that can be merged in every tensor; copy the tensors if more than four axes remain.

    tensors: ``[B, ...]``, all of one shape; None stands for an operand that is absent or drawn.
    """
    given = [x for x in tensors if x is not None]
    sizes, strides = _merge(given[0].shape[1:], [x.stride() for x in given])
    if len(sizes) > MAX_INNER_AXES:
        return layout(*(x if x is None else x.contiguous() for x in tensors))
    span = max(sum((n - 1) * s for n, s in zip(sizes, row[1:], strict=True)) for row in strides)
    wide = max(span, torch.Size(sizes).numel()) > _INT32_MAX - (1 << 16)
    rows = iter(strides)
    return Layout(tensors, sizes, tuple(None if x is None else next(rows) for x in tensors), wide)


def _merge(shape: torch.Size, strides: list[tuple[int, ...]]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
    sizes: list[int] = []
    inner: list[list[int]] = [[] for _ in strides]
    for axis, size in enumerate(shape, start=1):
        if size == 1:
            continue
        if sizes and all(kept[-1] == row[axis] * size for kept, row in zip(inner, strides, strict=True)):
            sizes[-1] *= size
            for kept, row in zip(inner, strides, strict=True):
                kept[-1] = row[axis]
        else:
            sizes.append(size)
            for kept, row in zip(inner, strides, strict=True):
                kept.append(row[axis])
    if not sizes:
        return (1,), [(row[0], 0) for row in strides]
    return tuple(sizes), [(row[0], *kept) for kept, row in zip(inner, strides, strict=True)]
