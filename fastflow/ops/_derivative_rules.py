"""The derivative rules of an op's four functions, each in terms of the four functions.

``_twice_differentiable.py`` has the table of them. Autograd does not materialise zeros here: an absent tangent or
cotangent is None and costs nothing.
"""

from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from .. import _torch
from ._calls import Backward, DualBackward, DualForward, Forward, Layout
from ._functions import Group
from ._steps import Op, Step, keep, kept, registered


class Differentiated(Op, Protocol):
    """The attributes and methods of an op that its rules use."""

    outputs: Any
    state: Any
    x: Any
    kept: Sequence[str]
    forward: Step
    backward: Step
    dual_forward: Step
    dual_backward: Step

    def joint_gradients(self, call: DualBackward) -> tuple[Tensor, ...]: ...

    def refuse_constants(self, wanted: Group) -> None: ...

    def refuse_third_order(self) -> NoReturn: ...


def forward_step(op: Differentiated, layout: Layout[Forward]) -> Step:
    none, every = _none(op.outputs), _all(op.x)

    class ForwardFunction(torch.autograd.Function):
        @staticmethod
        def keep(ctx: Any, call: Forward, results: Any) -> None:
            outputs, state = _groups(op, results)
            saved = _saved(op, outputs), state
            keep(ctx, op.backward, Backward(none, call.x, call.constants, *saved, call.options, every))
            ctx.strides = [y.stride() for y in outputs]

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
            needed = layout.restore(ctx.needs_input_grad)
            op.refuse_constants(needed.constants)
            g, _ = _groups(op, cotangents)
            if _is_none(g):
                return layout.partial()
            call = kept(ctx, op.backward)._replace(g=g, wants=needed.x)
            return layout.partial(x=_used(op.backward.run(call), call.wants))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
            given = layout.restore(tangents)
            op.refuse_constants(given.constants)
            call = kept(ctx, op.backward)
            _, t_outputs, _, t_state = _along(op, call, _stacked(given.x))
            t_outputs = [_laid_out(t.squeeze(0), strides) for t, strides in zip(t_outputs, ctx.strides)]
            return *t_outputs, *(t.squeeze(0) for t in t_state)

    return registered(op, "forward", ForwardFunction, layout, len(op.outputs._fields) + len(op.state._fields))


def backward_step(op: Differentiated, layout: Layout[Backward]) -> Step:
    class BackwardFunction(torch.autograd.Function):
        """Its derivatives treat the kept outputs and the state as functions of x."""

        @staticmethod
        def keep(ctx: Any, call: Backward, results: Any) -> None:
            ctx.strides = [dx.stride() for dx in results]
            keep(ctx, op.backward, call)

        @staticmethod
        def backward(ctx: Any, *directions: Tensor | None) -> tuple[Any, ...]:
            needed = layout.restore(ctx.needs_input_grad)
            op.refuse_constants(needed.constants)
            if _is_none(directions):
                return layout.partial()
            call = kept(ctx, op.backward)
            tangents, h = (directions, call.g) if call.has_many else (_stacked(op.x(*directions)), _stacked(call.g))
            along = _along(op, call, op.x(*tangents))
            grad_g = along[1] if call.has_many else [t.squeeze(0) for t in along[1]]
            grad_g = [None if g is None else t for g, t in zip(call.g, grad_g)]
            if not any(needed.x):
                return layout.partial(g=grad_g)
            joint = _joint(op, call, op.x(*tangents), along, h=op.outputs(*h), wants=needed.x)
            return layout.partial(g=grad_g, x=_primal_gradients(op, joint))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
            given = layout.restore(tangents)
            op.refuse_constants(given.constants)
            call = kept(ctx, op.backward)
            if _is_none((*given.x, *given.out, *given.state)):
                grads = op.backward.apply(call._replace(g=given.g))
            else:
                t_saved = _stacked(given.out), _stacked(given.state)
                joint = _joint(op, call, _stacked(given.x), (None, t_saved[0], None, t_saved[1]), wants=call.wants)
                if call.has_many:
                    K = next(g for g in call.g if g is not None).shape[0]
                    each = [
                        op.joint_gradients(joint._replace(g=_at(given.g, k), h=_stacked(_at(call.g, k))))
                        for k in range(K)
                    ]
                    grads = [
                        torch.stack(dxs) if wanted and x is not None else dxs[0]
                        for dxs, wanted, x in zip(zip(*each), call.wants, call.x)
                    ]
                else:
                    grads = op.joint_gradients(joint._replace(g=given.g, h=_stacked(call.g)))
            return tuple(_laid_out(dx, strides) for dx, strides in zip(grads, ctx.strides))

    return registered(op, "backward", BackwardFunction, layout, len(op.x._fields))


def dual_forward_step(op: Differentiated, layout: Layout[DualForward]) -> Step:
    num, num_state = len(op.outputs._fields), len(op.state._fields)
    none, every = _none(op.outputs), _all(op.x)

    class DualForwardFunction(torch.autograd.Function):
        @staticmethod
        def keep(ctx: Any, call: DualForward, results: Any) -> None:
            outputs, t_outputs, state, t_state = _dual_groups(op, results)
            saved = _saved(op, outputs), _saved(op, t_outputs), state, t_state
            operands = none, none, call.x, call.tangents, call.constants
            keep(ctx, op.dual_backward, DualBackward(*operands, *saved, call.options, every, every))

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
            needed = layout.restore(ctx.needs_input_grad)
            op.refuse_constants(needed.constants)
            call = kept(ctx, op.dual_backward)
            g, h = op.outputs(*cotangents[:num]), op.outputs(*cotangents[num : 2 * num])
            wants = needed.x
            if not _is_none(h):
                call = call._replace(g=g, h=h, wants=wants, t_wants=needed.tangents)
                grads = _used(op.joint_gradients(call), (*wants, *needed.tangents))
                return layout.partial(x=grads[: len(call.x)], tangents=grads[len(call.x) :])
            if not _is_none(g):
                plain = Backward(g, call.x, call.constants, call.out, call.state, call.options, wants)
                return layout.partial(x=_used(op.backward.run(plain), wants))
            return layout.partial()

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> NoReturn:
            raise NotImplementedError(
                f"fastflow.{op.name} does not support forward-mode AD inside forward-mode AD (a jvp of a jvp, with or "
                "without other transforms between them): take a second derivative as jvp(grad(f)) or grad(jvp(f))"
            )

    return registered(op, "dual_forward", DualForwardFunction, layout, 2 * (num + num_state))


def dual_backward_step(op: Differentiated, layout: Layout[DualBackward]) -> Step:
    num = len(op.x._fields)

    class DualBackwardFunction(torch.autograd.Function):
        """The backward of the dual forward: ``dx = Jᵀg + Σ H[h_k] t_k``, ``dt_k = Jᵀh_k``; H[h]: the Hessian of ⟨h, f⟩.

        The other functions give the derivatives of second order in x: dx is linear in g and t, dt_k is linear in h_k
        and differentiable in x. The rest is refused where it is asked for, see ``_guard.py``.
        """

        @staticmethod
        def keep(ctx: Any, call: DualBackward, results: Any) -> None:
            keep(ctx, op.dual_backward, call)

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
            needed = layout.restore(ctx.needs_input_grad)
            op.refuse_constants(needed.constants)
            call = kept(ctx, op.dual_backward)
            given, pairs = op.x(*cotangents[:num]), zip(cotangents[num:], call.tangents)
            of_tangents = op.x(*(None if t is None else d for d, t in pairs))
            if not _is_none(given):
                return layout.partial(**_linear_gradients(op, call, given))
            if _is_none(of_tangents):
                return layout.partial(h=_zeros(call.h), x=_zeros(call.x))
            along = _along(op, call, of_tangents)
            joint = _joint(op, call, of_tangents, along, h=call.h, wants=needed.x)
            grad_h = [None if h is None else t for h, t in zip(call.h, along[1])]
            return layout.partial(h=grad_h, x=_primal_gradients(op, joint))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
            given = layout.restore(tangents)
            op.refuse_constants(given.constants)
            call = kept(ctx, op.dual_backward)
            if not _is_none((*given.x, *given.tangents)):
                # A backward pass inside a bare dual level computes the tangent of every gradient, wanted or not.
                if _torch.inside_jvp():
                    op.refuse_third_order()
                return tuple(torch.full_like(y, torch.nan) for y in op.joint_gradients(call))
            h = op.outputs(*_zeros(call.h)) if _is_none(given.h) else given.h
            return op.joint_gradients(call._replace(g=given.g, h=h))

    def refuse(ctx: Any, *cotangents: Any) -> NoReturn:
        op.refuse_third_order()  # nothing guards the custom op

    return registered(op, "dual_backward", DualBackwardFunction, layout, 2 * num, op_backward=refuse)


def _linear_gradients(op: Differentiated, call: DualBackward, c: Group) -> dict[str, Any]:
    """Return the gradients of g and of the tangents for the cotangents c of dx: ``J c``, and ``H[h_k] c`` for t_k."""
    tangents = _stacked(c)
    along = _along(op, call, tangents)
    wants = op.x(*(t is not None for t in call.tangents))
    joint = _joint(op, call, tangents, along, wants=wants)
    K = next(h for h in call.h if h is not None).shape[0]
    each = [op.joint_gradients(joint._replace(h=_stacked(_at(call.h, k)))) for k in range(K)]
    columns = zip(call.tangents, zip(*each))
    return {
        "g": [None if g is None else t.squeeze(0) for g, t in zip(call.g, along[1])],
        "tangents": [None if t is None else torch.stack(dts).to(t.dtype) for t, dts in columns],
    }


def _along(op: Differentiated, call: Any, tangents: Group) -> tuple[Any, Any, Any, Any]:
    """Return outputs, t_outputs, state and t_state in these directions."""
    dual = DualForward(call.x, tangents, call.constants, call.options)
    return _dual_groups(op, op.dual_forward.apply(dual))


def _joint(
    op: Differentiated, call: Any, tangents: Group, along: Sequence[Any], *, wants: Group, h: Group | None = None
) -> DualBackward:
    """Return the call for the gradients of x through the tangents of the outputs; along: :func:`_along`."""
    none, (_, t_outputs, _, t_state) = _none(op.outputs), along
    saved = call.out, _saved(op, t_outputs), call.state, t_state
    nothing = op.x(*[False] * len(call.x))
    return DualBackward(none, h or none, call.x, tangents, call.constants, *saved, call.options, wants, nothing)


def _primal_gradients(op: Differentiated, joint: DualBackward) -> list[Tensor | None]:
    return _used(op.joint_gradients(joint)[: len(joint.x)], joint.wants)


def _used(grads: Sequence[Tensor], wants: Sequence[bool]) -> list[Tensor | None]:
    return [dx if wanted else None for dx, wanted in zip(grads, wants)]


def _groups(op: Differentiated, flat: Sequence[Any]) -> tuple[Any, Any]:
    """Return outputs and state."""
    num = len(op.outputs._fields)
    return op.outputs(*flat[:num]), op.state(*flat[num:])


def _dual_groups(op: Differentiated, flat: Sequence[Any]) -> tuple[Any, Any, Any, Any]:
    """Return outputs, t_outputs, state and t_state."""
    num = 2 * len(op.outputs._fields)
    outputs, state = flat[:num], flat[num:]
    half, t_half = num // 2, len(state) // 2
    return (
        op.outputs(*outputs[:half]),
        op.outputs(*outputs[half:]),
        op.state(*state[:t_half]),
        op.state(*state[t_half:]),
    )


def _saved(op: Differentiated, outputs: Any) -> Any:
    """Return the outputs that the op keeps, None for the others."""
    return op.outputs(*(y if name in op.kept else None for name, y in zip(op.outputs._fields, outputs)))


def _none(group: Any) -> Any:
    return group(*[None] * len(group._fields))


def _all(group: Any) -> Any:
    return group(*[True] * len(group._fields))


def _is_none(group: Sequence[Any]) -> bool:
    return all(y is None for y in group)


def _zeros(group: Group) -> list[Tensor | None]:
    return [None if y is None else torch.zeros_like(y) for y in group]


def _stacked(group: Any) -> Any:
    """Give each tensor an axis K of length 1."""
    return type(group)(*(None if t is None else t.unsqueeze(0) for t in group))


def _at(group: Any, k: int) -> Any:
    return type(group)(*(None if t is None else t[k] for t in group))


def _laid_out(x: Tensor, strides: Sequence[int]) -> Tensor:
    """Return x in the memory order of a dense tensor with these strides, which forward AD requires of a tangent."""
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])
