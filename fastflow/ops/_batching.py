"""The vmap rules of a twice-differentiable op whose primals are ``[B, ...]``.

Mapped tangents, or cotangents, of unmapped primals join the axis K and share the primal's work. In every other case the
mapped axis joins the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ._calls import Backward, DualBackward, DualForward, DualSaved, Forward, Layout, Saved

Dims = Sequence[int | None]
Mapped = tuple[tuple[Any, ...], tuple[int | None, ...]]

# the axis of the batch: 1 behind an axis K of tangents or cotangents
_DUAL_SAVED = DualSaved(out=0, t_out=1, state=0, t_state=1)


class JoinBatch:
    """Join the mapped axis with the batch, the first axis of every primal, constant, output and state.

    call: the custom op or ``Function.apply``, to run after that.
    """

    def forward(self, call: Callable[..., Any], layout: Layout[Forward], info: Any, dims: Dims, flat: Any) -> Mapped:
        x, constants, options = layout.restore(flat)
        at = layout.restore(dims)
        joined = Forward(
            _join(x, at.x, 0, info.batch_size), self._constants(constants, at.constants, x, at.x, info), options
        )
        return _split(call(*layout.flatten(joined)), (0, 0), info.batch_size)

    def backward(self, call: Callable[..., Any], layout: Layout[Backward], info: Any, dims: Dims, flat: Any) -> Mapped:
        """V cotangents of one forward are K = V, and V x K are V K."""
        size = info.batch_size
        old, at = layout.restore(flat), layout.restore(dims)
        has_many = old.g.ndim - (at.g is not None) > old.saved.out.ndim - (at.saved.out is not None)
        if all(dim is None for dim in (*at.x, *at.constants, *at.saved)):
            g = old.g.movedim(at.g, 0)
            grads = call(*layout.flatten(old._replace(g=g.flatten(0, 1) if has_many else g)))
            return tuple(dx.unflatten(0, (size, -1)) if has_many else dx for dx in grads), (0,) * len(grads)
        axis = int(has_many)
        joined = Backward(
            g=_join_one(old.g, at.g, axis, size),
            x=_join(old.x, at.x, 0, size),
            constants=self._constants(old.constants, at.constants, old.x, at.x, info),
            saved=Saved(*_join(old.saved, at.saved, 0, size)),
            options=old.options,
        )
        return _split(call(*layout.flatten(joined)), (axis,) * len(old.x), size)

    def dual_forward(
        self, call: Callable[..., Any], layout: Layout[DualForward], info: Any, dims: Dims, flat: Any
    ) -> Mapped:
        """V x K tangents of unmapped primals are V K tangents."""
        size = info.batch_size
        old, at = layout.restore(flat), layout.restore(dims)
        if all(dim is None for dim in (*at.x, *at.constants)):
            tangents = [
                None if t is None else _mapped(t, dim, 0, size).flatten(0, 1)
                for t, dim in zip(old.tangents, at.tangents)
            ]
            out, t_out, state, t_state = call(*layout.flatten(old._replace(tangents=tangents)))
            return (out, t_out.unflatten(0, (size, -1)), state, t_state.unflatten(0, (size, -1))), (None, 0, None, 0)
        joined = DualForward(
            x=_join(old.x, at.x, 0, size),
            tangents=_join(old.tangents, at.tangents, 1, size),
            constants=self._constants(old.constants, at.constants, old.x, at.x, info),
            options=old.options,
        )
        return _split(call(*layout.flatten(joined)), _DUAL_SAVED, size)

    def dual_backward(
        self, call: Callable[..., Any], layout: Layout[DualBackward], info: Any, dims: Dims, flat: Any
    ) -> Mapped:
        size = info.batch_size
        old, at = layout.restore(flat), layout.restore(dims)
        joined = DualBackward(
            g=_join_one(old.g, at.g, 0, size),
            h=_join_one(old.h, at.h, 1, size),
            x=_join(old.x, at.x, 0, size),
            tangents=_join(old.tangents, at.tangents, 1, size),
            constants=self._constants(old.constants, at.constants, old.x, at.x, info),
            saved=[_join_one(y, dim, axis, size) for y, dim, axis in zip(old.saved, at.saved, _DUAL_SAVED)],
            options=old.options,
        )
        axes = (*(0 for _ in old.x), *(None if t is None else 1 for t in old.tangents))
        return _split(call(*layout.flatten(joined)), axes, size)

    def join_constant(self, x: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
        """Join the mapped axis of a constant, ``[B, ...]`` here; batch: B."""
        return _mapped(x, dim, 0, size).flatten(0, 1)

    def _constants(self, constants: Any, dims: Any, x: Any, x_dims: Any, info: Any) -> list[Tensor | None]:
        batch = x[0].shape[0] if x_dims[0] is None else x[0].movedim(x_dims[0], 0).shape[1]
        return [
            None if c is None else self.join_constant(c, dim, info.batch_size, batch) for c, dim in zip(constants, dims)
        ]


def _join(xs: Any, dims: Any, axis: int, size: int) -> list[Tensor | None]:
    return [_join_one(x, dim, axis, size) for x, dim in zip(xs, dims)]


def _join_one(x: Tensor | None, dim: int | None, axis: int, size: int) -> Tensor | None:
    """Join the mapped axis with the batch, which is at ``axis``; repeat a tensor that has none."""
    return None if x is None else _mapped(x, dim, axis, size).flatten(axis, axis + 1)


def _split(results: Sequence[Tensor], axes: Sequence[int | None], size: int) -> Mapped:
    """Undo :func:`_join` on the results."""
    split = (y if axis is None else y.unflatten(axis, (size, -1)) for y, axis in zip(results, axes))
    return tuple(split), tuple(axes)


def _mapped(x: Tensor, dim: int | None, to: int, size: int) -> Tensor:
    """Move the mapped axis of x to ``to``; expand x there if it has none."""
    if dim is not None:
        return x.movedim(dim, to)
    return x.unsqueeze(to).expand(*x.shape[:to], size, *x.shape[to:])
