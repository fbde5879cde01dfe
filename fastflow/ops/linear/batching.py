"""The vmap rules of the linear layer: many inputs of one weight are rows of one GEMM."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .._batching import Dims, JoinBatch, Mapped
from .._calls import Backward, DualBackward, DualForward, Forward, Layout


class JoinRows(JoinBatch):
    """Join the mapped axis with M where no weight or bias is mapped and no gradient of them is wanted.

    In every other case it joins G: the weight is then repeated without copies.
    """

    def forward(self, call: Callable[..., Any], layout: Layout[Forward], info: Any, dims: Dims, flat: Any) -> Mapped:
        old, at = layout.restore(flat), layout.restore(dims)
        if _has_any(at.x[1:]):
            return super().forward(call, layout, info, dims, flat)
        results = call(*layout.flatten(old._replace(x=_joined(old.x, at.x, info.batch_size))))
        return _split(results, [1], info.batch_size)

    def backward(self, call: Callable[..., Any], layout: Layout[Backward], info: Any, dims: Dims, flat: Any) -> Mapped:
        old, at = layout.restore(flat), layout.restore(dims)
        if at.x.x is None or _has_any(at.x[1:]) or any(_wanted(old.x, old.wants)[1:]):
            return super().backward(call, layout, info, dims, flat)
        size = info.batch_size
        g = _joined(old.g, at.g, size)
        results = call(*layout.flatten(old._replace(g=g, x=_joined(old.x, at.x, size))))
        return _split(results, [g.out.ndim - 2 if old.wants.x else None, None, None], size)

    def dual_forward(
        self, call: Callable[..., Any], layout: Layout[DualForward], info: Any, dims: Dims, flat: Any
    ) -> Mapped:
        old, at = layout.restore(flat), layout.restore(dims)
        if at.x.x is None or _has_any((*at.x[1:], *at.tangents[1:])):
            return super().dual_forward(call, layout, info, dims, flat)
        size = info.batch_size
        joined = old._replace(x=_joined(old.x, at.x, size), tangents=_joined(old.tangents, at.tangents, size))
        return _split(call(*layout.flatten(joined)), [1, 2], size)

    def dual_backward(
        self, call: Callable[..., Any], layout: Layout[DualBackward], info: Any, dims: Dims, flat: Any
    ) -> Mapped:
        old, at = layout.restore(flat), layout.restore(dims)
        wanted, t_wanted = _wanted(old.x, old.wants), _wanted(old.tangents, old.t_wants)
        if _has_any((*at.x[1:], *at.tangents[1:])) or any((*wanted[1:], *t_wanted[1:])):
            return super().dual_backward(call, layout, info, dims, flat)
        size = info.batch_size
        groups = {name: _joined(getattr(old, name), getattr(at, name), size) for name in ("g", "h", "x", "tangents")}
        axes = [1 if wanted[0] else None, None, None, 2 if t_wanted[0] else None, None, None]
        return _split(call(*layout.flatten(old._replace(**groups))), axes, size)


def _has_any(dims: Sequence[int | None]) -> bool:
    return any(dim is not None for dim in dims)


def _wanted(operands: Any, wants: Any) -> list[bool]:
    return [y is not None and wanted for y, wanted in zip(operands, wants)]


def _joined(group: Any, dims: Any, size: int) -> Any:
    """Join the mapped axis with M, the last axis but one, of the first tensor; the others are not mapped."""
    first, *rest = group
    return type(group)(_join_rows(first, dims[0], size), *rest)


def _join_rows(x: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    if x is None:
        return None
    if dim is None:
        x = x.unsqueeze(-3).expand(*x.shape[:-2], size, *x.shape[-2:])
    else:
        x = x.movedim(dim, -3)
    return x.flatten(-3, -2)


def _split(results: Sequence[Tensor], axes: Sequence[int | None], size: int) -> Mapped:
    """Split the mapped axis off the rows, which are at these axes."""
    split = (y if axis is None else y.unflatten(axis, (size, -1)) for y, axis in zip(results, axes))
    return tuple(split), tuple(axes)
