"""Views of elementwise operands as rows, without a copy where their strides allow it."""

from collections.abc import Sequence

from torch import Tensor


def as_rows(tensors: Sequence[Tensor | None], ndim: int) -> list[Tensor | None]:
    """View tensors of one shape as ``[M, D]``, those with an axis K before it as ``[K, M, D]``; None stays None.

    Contiguous tensors are one long row. Otherwise D is the last axis, which is copied if it has gaps.

    ndim: dimensions of the shape, at least 1.
    """
    is_flat = ndim < 2 or all(y is None or y.is_contiguous() for y in tensors)

    def view(y: Tensor) -> Tensor:
        if is_flat:
            return y.contiguous().flatten(y.ndim - ndim).unsqueeze(-2)
        return (y if y.stride(-1) == 1 else y.contiguous()).flatten(y.ndim - ndim, -2)

    return [None if y is None else view(y) for y in tensors]
