"""The vmap rules of a twice-differentiable op whose primals are ``[B, ...]``.

Mapped tangents, or cotangents, of unmapped primals join the axis K and share the primal's work. In every other case the
mapped axis joins the batch.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from ._calls import Backward, DualBackward, DualForward, Forward, Layout

Dims = Sequence[int | None]
Mapped = tuple[tuple[Any, ...], tuple[int | None, ...]]


class JoinBatch:
    """Join the mapped axis with the batch, the first axis of every primal, constant, output and state.

    call: the custom op or ``Function.apply``, to run after that.
    """

    def forward(self, call: Callable[..., Any], layout: Layout[Forward], info: Any, dims: Dims, flat: Any) -> Mapped:
        old, at = layout.restore(flat), layout.restore(dims)
        joined = Forward(
            _join(old.x, at.x, 0, info.batch_size),
            self._constants(old.constants, at.constants, old.x, at.x, info),
            old.options,
        )
        results = call(*layout.flatten(joined))
        return _split(results, (0,) * len(results), info.batch_size)

    def backward(self, call: Callable[..., Any], layout: Layout[Backward], info: Any, dims: Dims, flat: Any) -> Mapped:
        """V cotangents of one forward are K = V, and V x K are V K."""
        size = info.batch_size
        old, at = layout.restore(flat), layout.restore(dims)
        g, g_dim = next((g, dim) for g, dim in zip(old.g, at.g) if g is not None)
        has_many = g.ndim - (g_dim is not None) > old.x[0].ndim - (at.x[0] is not None)
        is_given = [x is not None and wanted for x, wanted in zip(old.x, old.wants)]
        if all(dim is None for dim in (*at.x, *at.constants, *at.out, *at.state)):
            mapped = [None if g is None else _mapped(g, dim, 0, size) for g, dim in zip(old.g, at.g)]
            if has_many:
                mapped = [None if g is None else g.flatten(0, 1) for g in mapped]
            grads = call(*layout.flatten(old._replace(g=mapped)))
            if has_many:
                grads = [dx.unflatten(0, (size, -1)) if given else dx for dx, given in zip(grads, is_given)]
            return tuple(grads), tuple(0 if given else None for given in is_given)
        axis = int(has_many)
        joined = Backward(
            g=_join(old.g, at.g, axis, size),
            x=_join(old.x, at.x, 0, size),
            constants=self._constants(old.constants, at.constants, old.x, at.x, info),
            out=_join(old.out, at.out, 0, size),
            state=_join(old.state, at.state, 0, size),
            options=old.options,
            wants=old.wants,
        )
        return _split(call(*layout.flatten(joined)), [axis if given else None for given in is_given], size)

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
            results = call(*layout.flatten(old._replace(tangents=tangents)))
            axes = layout.of_results(outputs=None, t_outputs=0, state=None, t_state=0)
            split = (y if axis is None else y.unflatten(0, (size, -1)) for y, axis in zip(results, axes))
            return tuple(split), axes
        joined = DualForward(
            x=_join(old.x, at.x, 0, size),
            tangents=_join(old.tangents, at.tangents, 1, size),
            constants=self._constants(old.constants, at.constants, old.x, at.x, info),
            options=old.options,
        )
        axes = layout.of_results(outputs=0, t_outputs=1, state=0, t_state=1)
        return _split(call(*layout.flatten(joined)), axes, size)

    def dual_backward(
        self, call: Callable[..., Any], layout: Layout[DualBackward], info: Any, dims: Dims, flat: Any
    ) -> Mapped:
        size = info.batch_size
        old, at = layout.restore(flat), layout.restore(dims)
        joined = DualBackward(
            g=_join(old.g, at.g, 0, size),
            h=_join(old.h, at.h, 1, size),
            x=_join(old.x, at.x, 0, size),
            tangents=_join(old.tangents, at.tangents, 1, size),
            constants=self._constants(old.constants, at.constants, old.x, at.x, info),
            out=_join(old.out, at.out, 0, size),
            t_out=_join(old.t_out, at.t_out, 1, size),
            state=_join(old.state, at.state, 0, size),
            t_state=_join(old.t_state, at.t_state, 1, size),
            options=old.options,
            wants=old.wants,
            t_wants=old.t_wants,
        )
        operands = zip((*old.x, *old.tangents), (*old.wants, *old.t_wants))
        is_given = [y is not None and wanted for y, wanted in operands]
        num = len(old.x)
        axes = [None if not given else int(i >= num) for i, given in enumerate(is_given)]
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
