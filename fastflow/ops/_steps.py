"""The steps of an op: an autograd.Function and a custom op with the same derivative rules for each of its functions."""

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .. import _torch
from .._dtypes import autocast_dtype
from ._batched_grads import maps_batched_grads
from ._batching import JoinBatch
from ._calls import Backward, DualBackward, Layout
from ._custom_op import custom_op
from ._functions import Functions, Group, absent

_SUFFIXES = {"forward": "", "backward": "_backward", "dual_forward": "_dual", "dual_backward": "_dual_backward"}
_NO_CONTEXT: AbstractContextManager[object] = nullcontext()


class Op(Protocol):
    """The attributes of an op that its steps use."""

    name: str
    functions: Functions
    batching: JoinBatch


@dataclass(frozen=True)
class Step:
    """One of the four functions of an op.

    function: works everywhere; at_base: the same without flat arguments, for plain tensors outside of transforms.
    rule: the vmap rule, of :class:`JoinBatch`.
    """

    layout: Layout[Any]
    compute: Callable[[Any], Any]
    function: Any
    at_base: Any
    op: Any
    rule: Callable[..., Any]

    def __call__(self, call: Group) -> Any:
        """Call the custom op under torch.compile, else :meth:`run`."""
        return self._dispatch(self.layout.flatten(call)) if torch.compiler.is_compiling() else self.run(call)

    def run(self, call: Group) -> Any:
        """Call the Function; compute without recording a graph if no derivative can be wanted."""
        flat = self.layout.flatten(call)
        tensors = flat[: self.layout.num_tensors]
        if not _torch.can_skip_dispatcher(*tensors):
            if _torch.transforms()[-1:] == ("Vmap",):
                return _torch.through_vmap(self._run_flat, self._map, flat)
            return self.function.apply(*flat) if _differentiating(tensors) else self._dispatch(flat)
        return _torch.apply(self.at_base, *tensors, call) if _differentiating(tensors) else self.compute(call)

    def _run_flat(self, *flat: Any) -> Any:
        return self.run(self.layout.restore(flat))

    def _map(self, call: Callable[..., Any], info: Any, dims: Any, flat: Any) -> Any:
        return self.rule(call, self.layout, info, dims, flat)

    def apply(self, call: Group) -> Any:
        return self.function.apply(*self.layout.flatten(call))

    def _dispatch(self, flat: Sequence[Any]) -> Any:
        return _packed(self.op(*flat))


def registered(
    op: Op, role: str, function: Any, layout: Layout[Any], num_outputs: int, op_backward: Any = None
) -> Step:
    """Complete an autograd.Function that has its derivative rules, and register a custom op with the same rules.

    role: names the function in :class:`Functions`, its fake and its vmap rule. op_backward: of the custom op, if it
    cannot be the Function's.
    """
    implementation, fake = getattr(op.functions, role), getattr(op.functions, f"fake_{role}")
    rule, name = getattr(op.batching, role), op.name + _SUFFIXES[role]

    def gradients(call: Any) -> Any:
        with _full_precision(call.x[0]):
            return _wanted(call, implementation(call))

    def results(call: Any) -> Any:
        with _full_precision(call.x[0]):
            return _unaliased(implementation(call), [y for group in call[:2] for y in group])

    is_backward = role in ("backward", "dual_backward")
    compute = gradients if is_backward else results

    def fresh(call: Any, flat: Sequence[Any]) -> Any:
        return tuple(map(_torch.unviewed, _unaliased(compute(call), flat) if is_backward else compute(call)))

    def forward(*flat: Any) -> Any:
        return fresh(layout.restore(flat), flat) if _torch.can_skip_dispatcher(*flat) else custom(*flat)

    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        function.keep(ctx, layout.restore(inputs), _packed(output))

    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # Function.apply reads it at every call
    function.__name__ = function.__qualname__ = "".join(part.title() for part in name.split("_"))
    function.forward, function.setup_context = staticmethod(forward), staticmethod(setup_context)
    function.backward = staticmethod(maps_batched_grads(function.backward, takes_many=role == "forward"))
    function.vmap = staticmethod(lambda info, dims, *flat: rule(function.apply, layout, info, dims, flat))

    def flops(*shapes: Any, **_: Any) -> int:
        return op.functions.flops(layout.restore(shapes))

    class AtBase(torch.autograd.Function):
        """Takes the tensors and then the call that has them."""

        jvp = staticmethod(function.jvp)

        @staticmethod
        def forward(ctx: Any, *tensors_and_call: Any) -> Any:
            *tensors, call = tensors_and_call
            results = fresh(call, tensors)
            function.keep(ctx, call, results)
            return results

        @staticmethod
        def backward(ctx: Any, *cotangents: Any) -> Any:
            return *function.backward(ctx, *cotangents)[: layout.num_tensors], None

    AtBase.__name__ = AtBase.__qualname__ = function.__name__
    schema = f"({layout.schema()}) -> ({', '.join(['Tensor'] * num_outputs)})"
    opaque = custom_op(name, schema, flops)(lambda *flat: _unpacked(_unaliased(compute(layout.restore(flat)), flat)))
    opaque.register_fake(lambda *flat: _unpacked(_fake(fake, layout.restore(flat))))
    opaque.register_autograd(op_backward or function.backward, setup_context=setup_context)
    opaque.register_vmap(lambda info, dims, *flat: tuple(map(_unpacked, rule(custom, layout, info, dims, flat))))

    def custom(*flat: Any) -> Any:
        return _packed(opaque(*flat))

    return Step(layout, compute, function, AtBase, opaque, rule)


def _packed(results: Any) -> Any:
    """Return the results of a custom op as a tuple: one with a single result returns the tensor itself."""
    return (results,) if isinstance(results, Tensor) else results


def _unpacked(results: Sequence[Any]) -> Any:
    """Undo :func:`_packed`."""
    return results[0] if len(results) == 1 else results


def keep(ctx: Any, step: Step, backward_call: Group) -> None:
    """Keep a backward's call, all but its cotangents, for :func:`kept`."""
    flat, num = step.layout.flatten(backward_call), step.layout.num_tensors
    tensors, ctx.options = flat[:num], flat[num:]
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    if _torch.forward_mode_active():
        ctx.save_for_forward(*tensors)


def kept(ctx: Any, step: Step) -> Any:
    return step.layout.restore((*ctx.saved_tensors, *ctx.options))


def _differentiating(tensors: Sequence[Tensor | None]) -> bool:
    """Return True if a derivative of a function of tensors could be wanted, or the function could be mapped."""
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors):
        return True
    # torch.func.jvp refuses to run inside a bare dual level, so that inside it only wrapped tensors have tangents
    return _torch.inside_transform() or (_torch.forward_mode_active() and not _torch.inside_jvp())


def _wanted(call: Any, results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Replace the gradients that are not wanted, so that an implementation may ignore what is."""
    if isinstance(call, Backward):
        operands, wants = call.x, call.wants
    elif isinstance(call, DualBackward):
        operands, wants = (*call.x, *call.tangents), (*call.wants, *call.t_wants)
    else:
        return results
    if all(wants):
        return results
    return tuple(dx if wanted or y is None else absent(dx) for dx, y, wanted in zip(results, operands, wants))


def _fake(fake: Callable[[Any], tuple[Tensor, ...]], call: Any) -> tuple[Tensor, ...]:
    return _wanted(call, fake(call))


def _unaliased(results: Sequence[Tensor], args: Sequence[Any]) -> tuple[Tensor, ...]:
    """Copy the results that share memory with an argument or another result.

    A custom op may not return these, nor an autograd.Function with ``setup_context``.
    """
    seen = {x.untyped_storage().data_ptr() for x in args if isinstance(x, Tensor)}
    fresh = []
    for y in results:
        memory = y.untyped_storage().data_ptr()
        fresh.append(y.clone() if memory in seen else y)
        seen.add(memory)
    return tuple(fresh)


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Disable autocast inside an op: it has been applied to the arguments."""
    device = x.device.type
    return _NO_CONTEXT if autocast_dtype(device) is None else torch.autocast(device, enabled=False)
