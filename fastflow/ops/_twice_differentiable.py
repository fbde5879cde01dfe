"""Make an op differentiable to second order in every mode, from four functions without any autograd.

Two pairs of functions are enough: the op and its backward, and the op with tangents (dual) and the backward of both.

===========================================  ==================================================================
mode                                         computed by
===========================================  ==================================================================
jvp                                          dual forward
reverse over forward                         dual backward
forward over reverse, direction (tx, tg)     dual backward with g := tg, h := g; the gradients of x
reverse over reverse, cotangents c           dual forward with tangents c, for g; dual backward with h := g, for x
===========================================  ==================================================================

A third derivative raises, and so does forward mode inside forward mode. Autograd does not materialise zeros here: an
absent tangent or cotangent is None and costs nothing.
"""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import _torch
from .._dtypes import autocast_dtype
from ._batched_grads import maps_batched_grads
from ._batching import JoinBatch
from ._calls import Backward, DualBackward, DualForward, DualSaved, Forward, Layout, Saved
from ._custom_op import custom_op
from ._functions import Functions, Group
from ._guard import guarded

Prepare = Callable[[Group, Group | None], tuple[Group, Group | None, Group]]

_SUFFIXES = {"forward": "", "backward": "_backward", "dual_forward": "_dual", "dual_backward": "_dual_backward"}
_NO_CONTEXT: AbstractContextManager[object] = nullcontext()


@dataclass(frozen=True)
class Step:
    """One of the four functions of an op: an autograd.Function and a custom op with the same derivative rules."""

    layout: Layout[Any]
    compute: Callable[[Any], Any]
    function: Any
    op: Any

    def __call__(self, call: Group) -> Any:
        """Call the custom op under torch.compile, else :meth:`run`."""
        return self.op(*self.layout.flatten(call)) if torch.compiler.is_compiling() else self.run(call)

    def run(self, call: Group) -> Any:
        """Call the Function; compute without recording a graph if no derivative can be wanted."""
        flat = self.layout.flatten(call)
        if _differentiating(flat):
            return _torch.apply(self.function, *flat)
        return self.compute(call) if _torch.can_skip_dispatcher(*flat) else self.op(*flat)

    def apply(self, call: Group) -> Any:
        return self.function.apply(*self.layout.flatten(call))


class TwiceDifferentiable:
    """An op ``out = f(x; constants, options)`` with every derivative to second order.

    Args:
        name: of the op; its custom ops are ``name``, ``name_backward``, ``name_dual`` and ``name_dual_backward``.
        x: NamedTuple type of the differentiable tensors.
        constants: NamedTuple type of the other tensors, which have no derivative, named as the public function does.
        options: NamedTuple type of the float, int, bool and str options.
        functions: see :class:`Functions`.
        batching: the vmap rules.
        instead: what to use where a third derivative is wanted, for the error message.
    """

    def __init__(
        self,
        name: str,
        *,
        x: type[Group],
        constants: type[Group],
        options: type[Group],
        functions: Functions,
        batching: JoinBatch,
        instead: str,
    ) -> None:
        self.name, self.functions, self.batching, self.instead = name, functions, batching, instead
        groups = {"x": x, "tangents": x, "constants": constants, "options": options}

        def layout(call: type[Group], saved: type[Group] | None = None) -> Layout[Any]:
            fields = call._fields  # type: ignore[attr-defined]
            return Layout(call, **{k: v for k, v in {**groups, "saved": saved}.items() if k in fields and v})

        self.forward = _forward(self, layout(Forward))
        self.backward = _backward(self, layout(Backward, Saved), len(x._fields))  # type: ignore[attr-defined]
        self.dual_forward = _dual_forward(self, layout(DualForward))
        self.dual_backward = _dual_backward(self, layout(DualBackward, DualSaved), len(x._fields))  # type: ignore[attr-defined]

    def __call__(self, x: Group, constants: Group, prepare: Prepare) -> Tensor:
        """Return out, whatever transform is active.

        One pass computes out and its tangent where the innermost transform is a jvp. A bare ``forward_ad.dual_level``
        keeps its dual tensors, because the tangent of a gradient may be wanted later. Under torch.compile duals are
        unpacked everywhere, because Dynamo drops the ``jvp`` of a ``Function`` silently (pytorch#192985).

        prepare: called once with the unpacked primals and tangents (None where there are none); returns both, cast and
        laid out as the op requires, and the options.
        """
        compiling, num = torch.compiler.is_compiling(), len(x)
        if compiling or _torch.transforms()[-1:] == ("Jvp",):
            duals = [forward_ad.unpack_dual(y) for y in x]
            if any(y.tangent is not None for y in duals):

                def dual(*flat: Any) -> tuple[Tensor, Tensor]:
                    primals, tangents, options = prepare(flat[:num], flat[num : 2 * num])
                    out, t_out = self.dual(primals, _stacked(tangents or ()), flat[2 * num :], options)
                    return out, t_out.squeeze(0).to(out.dtype)

                flat = (*(y.primal for y in duals), *(y.tangent for y in duals), *constants)
                return forward_ad.make_dual(*(dual if compiling else _torch.one_level_down(dual))(*flat))
        primals, _, options = prepare(x, None)
        return self.forward(Forward(primals, constants, options))[0]

    def dual(
        self, x: Group, tangents: Sequence[Tensor | None], constants: Group, options: Group
    ) -> tuple[Tensor, Tensor]:
        """Return ``(out, t_out)`` for K tangents ``[K, ...]`` of each x, None for zero."""
        out, t_out, *_ = self.dual_forward(DualForward(x, tangents, constants, options))
        return out, t_out

    def joint_gradients(self, call: DualBackward) -> tuple[Tensor, ...]:
        """Run the dual backward, whose gradients in x and h raise where they would be of third order."""
        if torch.is_grad_enabled() and any(map(_torch.requires_grad_at_any_level, (call.h, *call.x))):
            (h,), x = (guarded(self.refuse_third_order, *tensors) for tensors in ((call.h,), call.x))
            call = call._replace(h=h, x=type(call.x)(*x))
        return self.dual_backward.run(call)

    @staticmethod
    def why_not_compiled() -> str | None:
        """Return why torch.compile cannot trace this op under the active transforms, or None."""
        *outer, innermost = _torch.transforms() or ("Jvp",)
        if torch.compiler.is_compiling() and (innermost != "Jvp" or set(outer) - {"Vmap"}):
            return "under torch.compile the custom ops support an innermost jvp with vmap around it, nothing else"
        return None

    def refuse_constants(self, wanted: Group) -> None:
        """Raise if a derivative with respect to a constant is wanted."""
        for name, is_wanted in zip(wanted._fields, wanted):  # type: ignore[attr-defined]
            if is_wanted is not None and is_wanted is not False:  # a tangent, or one of needs_input_grad
                raise NotImplementedError(
                    f"fastflow.{self.name} cannot differentiate with respect to {name} under this combination of "
                    f"transforms; pass {name}.detach() if its derivative is not wanted"
                )

    def refuse_third_order(self) -> NoReturn:
        raise NotImplementedError(
            f"fastflow.{self.name} has no third derivative: this would differentiate the backward of a tangent. "
            f"Detach one of the inner derivatives, or use {self.instead} for this call"
        )


def _differentiating(args: Sequence[Any]) -> bool:
    """Return True if a derivative of a function of args could be wanted, or the function could be mapped."""
    recording = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
    return recording or _torch.forward_mode_active() or _torch.inside_transform()


def _forward(op: TwiceDifferentiable, layout: Layout[Forward]) -> Step:
    class ForwardFunction(torch.autograd.Function):
        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, constants, options = layout.restore(inputs)
            _keep(ctx, op.backward, Backward(None, x, constants, Saved(*output), options))

        @staticmethod
        def backward(ctx: Any, g: Tensor | None, _: Any) -> tuple[Any, ...]:
            op.refuse_constants(layout.restore(ctx.needs_input_grad).constants)
            if g is None:
                return layout.partial()
            return layout.partial(x=op.backward.run(_kept(ctx, op.backward)._replace(g=g)))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, Tensor]:
            given = layout.restore(tangents)
            op.refuse_constants(given.constants)
            kept = _kept(ctx, op.backward)
            dual = DualForward(kept.x, _stacked(given.x), kept.constants, kept.options)
            _out, t_out, _state, t_state = op.dual_forward.apply(dual)
            return _laid_out(t_out.squeeze(0), kept.saved.out.stride()), t_state.squeeze(0)

    return _registered(op, "forward", ForwardFunction, layout, num_outputs=2)


def _backward(op: TwiceDifferentiable, layout: Layout[Backward], num: int) -> Step:
    class BackwardFunction(torch.autograd.Function):
        """Its derivatives treat out and state as functions of x."""

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.strides = [dx.stride() for dx in output]
            _keep(ctx, op.backward, layout.restore(inputs))

        @staticmethod
        def backward(ctx: Any, *directions: Tensor | None) -> tuple[Any, ...]:
            needed = layout.restore(ctx.needs_input_grad)
            op.refuse_constants(needed.constants)
            if all(y is None for y in directions):
                return layout.partial()
            kept = _kept(ctx, op.backward)
            tangents, h = (directions, kept.g) if kept.has_many else (_stacked(directions), kept.g.unsqueeze(0))
            dual = DualForward(kept.x, tangents, kept.constants, kept.options)
            _out, t_out, _state, t_state = op.dual_forward.apply(dual)
            grad_g = t_out if kept.has_many else t_out.squeeze(0)
            if not any(needed.x):
                return layout.partial(g=grad_g)
            saved = DualSaved(kept.saved.out, t_out, kept.saved.state, t_state)
            joint = DualBackward(None, h, kept.x, tangents, kept.constants, saved, kept.options)
            return layout.partial(g=grad_g, x=_primal_gradients(op, joint))

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
            given = layout.restore(tangents)
            op.refuse_constants(given.constants)
            kept = _kept(ctx, op.backward)
            if given.saved.out is None:
                grads = op.backward.apply(kept._replace(g=given.g))
            else:
                t_out, t_state = _stacked(given.saved)
                saved = DualSaved(kept.saved.out, t_out, kept.saved.state, t_state)
                joint = DualBackward(None, None, kept.x, _stacked(given.x), kept.constants, saved, kept.options)
                if kept.has_many:
                    t_gs = [None] * len(kept.g) if given.g is None else given.g
                    each = [_primal_gradients(op, joint._replace(g=t_g, h=g[None])) for g, t_g in zip(kept.g, t_gs)]
                    grads = [torch.stack(dxs) for dxs in zip(*each)]
                else:
                    grads = _primal_gradients(op, joint._replace(g=given.g, h=kept.g.unsqueeze(0)))
            return tuple(_laid_out(dx, strides) for dx, strides in zip(grads, ctx.strides))

    return _registered(op, "backward", BackwardFunction, layout, num_outputs=num)


def _dual_forward(op: TwiceDifferentiable, layout: Layout[DualForward]) -> Step:
    class DualForwardFunction(torch.autograd.Function):
        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            x, tangents, constants, options = layout.restore(inputs)
            _keep(ctx, op.dual_backward, DualBackward(None, None, x, tangents, constants, DualSaved(*output), options))

        @staticmethod
        def backward(ctx: Any, g: Tensor | None, h: Tensor | None, *_: Any) -> tuple[Any, ...]:
            op.refuse_constants(layout.restore(ctx.needs_input_grad).constants)
            kept = _kept(ctx, op.dual_backward)
            num = len(kept.x)
            if h is not None:
                grads = op.joint_gradients(kept._replace(g=g, h=h))
                t_grads = [None if t is None else dt for t, dt in zip(kept.tangents, grads[num:])]
                return layout.partial(x=grads[:num], tangents=t_grads)
            if g is not None:
                saved = Saved(kept.saved.out, kept.saved.state)
                return layout.partial(x=op.backward.run(Backward(g, kept.x, kept.constants, saved, kept.options)))
            return layout.partial()

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> NoReturn:
            raise NotImplementedError(
                f"fastflow.{op.name} does not support forward-mode AD inside forward-mode AD (a jvp of a jvp, with or "
                "without other transforms between them): take a second derivative as jvp(grad(f)) or grad(jvp(f))"
            )

    return _registered(op, "dual_forward", DualForwardFunction, layout, num_outputs=4)


def _dual_backward(op: TwiceDifferentiable, layout: Layout[DualBackward], num: int) -> Step:
    class DualBackwardFunction(torch.autograd.Function):
        """The backward of the dual forward: ``dx = Jᵀg + Σ H[h_k] t_k``, ``dt_k = Jᵀh_k``; H[h]: the Hessian of ⟨h, f⟩.

        The other functions give the derivatives of second order in x: dx is linear in g and t, dt_k is linear in h_k
        and differentiable in x. The rest is refused where it is asked for, see ``_guard.py``.
        """

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            _keep(ctx, op.dual_backward, layout.restore(inputs))

        @staticmethod
        def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
            op.refuse_constants(layout.restore(ctx.needs_input_grad).constants)
            kept = _kept(ctx, op.dual_backward)
            given, pairs = cotangents[:num], zip(cotangents[num:], kept.tangents)
            of_tangents = tuple(None if t is None else d for d, t in pairs)
            if any(c is not None for c in given):
                return layout.partial(**_linear_gradients(op, kept, given))
            if all(d is None for d in of_tangents):
                return layout.partial(h=torch.zeros_like(kept.h), x=[torch.zeros_like(y) for y in kept.x])
            t_out, joint = _along(op, kept, of_tangents, kept.h)
            return layout.partial(h=t_out, x=op.joint_gradients(joint)[:num])

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
            given = layout.restore(tangents)
            op.refuse_constants(given.constants)
            kept = _kept(ctx, op.dual_backward)
            if any(t is not None for t in (*given.x, *given.tangents)):
                # A backward pass inside a bare dual level computes the tangent of every gradient, wanted or not.
                if _torch.inside_jvp():
                    op.refuse_third_order()
                return tuple(torch.full_like(y, torch.nan) for y in op.joint_gradients(kept))
            h = torch.zeros_like(kept.h) if given.h is None else given.h
            return op.joint_gradients(kept._replace(g=given.g, h=h))

    def refuse(ctx: Any, *cotangents: Any) -> NoReturn:
        op.refuse_third_order()  # nothing guards the custom op

    return _registered(op, "dual_backward", DualBackwardFunction, layout, num_outputs=2 * num, op_backward=refuse)


def _linear_gradients(op: TwiceDifferentiable, kept: DualBackward, c: Sequence[Tensor | None]) -> dict[str, Any]:
    """Return the gradients of g and of the tangents for the cotangents c of dx: ``J c``, and ``H[h_k] c`` for t_k."""
    t_out, joint = _along(op, kept, _stacked(c), None)
    each = [op.joint_gradients(joint._replace(h=h.unsqueeze(0)))[: len(kept.x)] for h in kept.h]
    columns = zip(kept.tangents, zip(*each))
    return {
        "g": None if kept.g is None else t_out.squeeze(0),
        "tangents": [None if t is None else torch.stack(dts).to(t.dtype) for t, dts in columns],
    }


def _along(
    op: TwiceDifferentiable, kept: DualBackward, tangents: Sequence[Tensor | None], h: Tensor | None
) -> tuple[Tensor, DualBackward]:
    """Return the tangent of out in these directions, and the call of its backward for the cotangent h."""
    dual = DualForward(kept.x, tangents, kept.constants, kept.options)
    _out, t_out, _state, t_state = op.dual_forward.apply(dual)
    saved = DualSaved(kept.saved.out, t_out, kept.saved.state, t_state)
    return t_out, DualBackward(None, h, kept.x, tangents, kept.constants, saved, kept.options)


def _registered(
    op: TwiceDifferentiable, role: str, function: Any, layout: Layout[Any], num_outputs: int, op_backward: Any = None
) -> Step:
    """Complete an autograd.Function that has its derivative rules, and register a custom op with the same rules.

    role: names the function in :class:`Functions`, its fake and its vmap rule. op_backward: of the custom op, if it
    cannot be the Function's.
    """
    implementation, fake = getattr(op.functions, role), getattr(op.functions, f"fake_{role}")
    rule, name = getattr(op.batching, role), op.name + _SUFFIXES[role]

    def compute(call: Any) -> Any:
        with _full_precision(call.x[0]):
            return implementation(call)

    def forward(*flat: Any) -> Any:
        return compute(layout.restore(flat)) if _torch.can_skip_dispatcher(*flat) else custom(*flat)

    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # Function.apply reads it at every call
    function.__name__ = function.__qualname__ = "".join(part.title() for part in name.split("_"))
    function.forward = staticmethod(forward)
    function.backward = staticmethod(maps_batched_grads(function.backward))
    function.vmap = staticmethod(lambda info, dims, *flat: rule(function.apply, layout, info, dims, flat))

    def flops(*shapes: Any, **_: Any) -> int:
        return op.functions.flops(layout.restore(shapes))

    schema = f"({layout.schema()}) -> ({', '.join(['Tensor'] * num_outputs)})"
    custom = custom_op(name, schema, flops)(lambda *flat: compute(layout.restore(flat)))
    custom.register_fake(lambda *flat: fake(layout.restore(flat)))
    custom.register_autograd(op_backward or function.backward, setup_context=function.setup_context)
    custom.register_vmap(lambda info, dims, *flat: rule(custom, layout, info, dims, flat))
    return Step(layout, compute, function, custom)


def _keep(ctx: Any, step: Step, backward_call: Group) -> None:
    """Keep a backward's call, all but its cotangents, for :func:`_kept`."""
    flat = step.layout.flatten(backward_call)
    num_tensors = len(flat) - len(backward_call.options)  # type: ignore[attr-defined]
    tensors, ctx.options = flat[:num_tensors], flat[num_tensors:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _kept(ctx: Any, step: Step) -> Any:
    return step.layout.restore((*ctx.saved_tensors, *ctx.options))


def _primal_gradients(op: TwiceDifferentiable, joint: DualBackward) -> tuple[Tensor, ...]:
    return op.joint_gradients(joint)[: len(joint.x)]


def _stacked(tangents: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Give each tangent an axis K of length 1."""
    return tuple(None if t is None else t.unsqueeze(0) for t in tangents)


def _laid_out(x: Tensor, strides: Sequence[int]) -> Tensor:
    """Return x in the memory order of a dense tensor with these strides, which forward AD requires of a tangent."""
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Disable autocast inside an op: it has been applied to the arguments."""
    device = x.device.type
    return _NO_CONTEXT if autocast_dtype(device) is None else torch.autocast(device, enabled=False)
