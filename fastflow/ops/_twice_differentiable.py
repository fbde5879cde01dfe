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

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from .. import _torch
from .._checks import check_recording
from ._batching import JoinBatch
from ._calls import Backward, DualBackward, DualForward, Forward, Layout
from ._derivative_rules import backward_step, dual_backward_step, dual_forward_step, forward_step
from ._functions import Functions, Group
from ._guard import guarded
from ._ordinary import is_ordinary
from ._steps import Step as Step

Prepare = Callable[[Group, Group | None], tuple[Group, Group | None, Group]]


class Out(NamedTuple):
    """The outputs of an op that has one."""

    out: Tensor


class NoState(NamedTuple):
    """The state of an op whose backward reads only its operands."""


class TwiceDifferentiable:
    """An op ``outputs = f(x; constants, options)`` with every derivative to second order.

    Args:
        name: of the op; its custom ops are ``name``, ``name_backward``, ``name_dual`` and ``name_dual_backward``.
        x: NamedTuple type of the differentiable tensors, of which the first is never None.
        constants: NamedTuple type of the other tensors, which have no derivative, named as the public function does.
        options: NamedTuple type of the float, int, bool and str options.
        functions: see :class:`Functions`.
        batching: the vmap rules.
        instead: what to use where a third derivative is wanted, for the error message.
        outputs: NamedTuple type of the outputs, each with as many dimensions as the first x.
        state: NamedTuple type of what the backward reads beside the operands.
        kept: names of the outputs that the backward reads.
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
        outputs: type[Group] = Out,
        state: type[Group] = NoState,
        kept: Sequence[str] = (),
    ) -> None:
        self.name, self.functions, self.batching, self.instead = name, functions, batching, instead
        self.x, self.outputs, self.state, self.kept = x, outputs, state, kept
        self._is_written_out = type(functions).reference is not Functions.reference
        functions.num_outputs = len(outputs._fields)  # type: ignore[attr-defined]
        groups = {"x": x, "tangents": x, "wants": x, "t_wants": x, "constants": constants, "options": options}
        groups |= {"g": outputs, "h": outputs, "out": outputs, "t_out": outputs, "state": state, "t_state": state}
        self.forward = forward_step(self, Layout(Forward, groups))
        self.backward = backward_step(self, Layout(Backward, groups))
        self.dual_forward = dual_forward_step(self, Layout(DualForward, groups))
        self.dual_backward = dual_backward_step(self, Layout(DualBackward, groups))

    def __call__(self, x: Group, constants: Group, prepare: Prepare) -> Any:
        """Return the outputs, whatever transform is active.

        One pass computes the outputs and their tangents where the innermost transform is a jvp. A bare
        ``forward_ad.dual_level`` keeps its dual tensors, because the tangent of a gradient may be wanted later. Under
        torch.compile duals are unpacked everywhere, because Dynamo drops the ``jvp`` of a ``Function`` silently
        (pytorch#192985).

        prepare: called once with the unpacked primals and tangents (None where there are none); returns both, cast and
        laid out as the op requires, and the options.
        """
        check_recording()
        compiling, num = torch.compiler.is_compiling(), len(x)
        if compiling or _torch.innermost_is_jvp():
            duals = [_torch.unpacked(y) for y in x]
            if any(tangent is not None for _, tangent in duals):

                def dual(*flat: Any) -> tuple[Tensor, ...]:
                    primals, tangents, options = prepare(self.x(*flat[:num]), self.x(*flat[num : 2 * num]))
                    stacked = [None if t is None else t.unsqueeze(0) for t in tangents or ()]
                    outputs, t_outputs = self.dual(primals, stacked, type(constants)(*flat[2 * num :]), options)
                    return *outputs, *(t.squeeze(0).to(y.dtype) for t, y in zip(t_outputs, outputs))

                flat = (*(primal for primal, _ in duals), *(tangent for _, tangent in duals), *constants)
                results = (dual if compiling else _torch.one_level_down(dual))(*flat)
                num_outputs = len(results) // 2
                return self.outputs(*map(_torch.dual, results[:num_outputs], results[num_outputs:]))
        primals, _, options = prepare(x, None)
        return self.without_tangents(Forward(self.x(*primals), constants, options))

    def without_tangents(self, call: Forward) -> Any:
        """Return the outputs: by PyTorch's own ops where these are right, written out under torch.compile."""
        outputs = None
        if torch.compiler.is_compiling():
            if self._can_write_out(call.options):
                outputs = self.functions.reference(call)
        elif is_ordinary():
            outputs = self.functions.plain(call)
        if outputs is None:
            outputs = self.forward(call)[: len(self.outputs._fields)]  # type: ignore[attr-defined]
        return self.outputs(*outputs)

    def dual(
        self, x: Sequence[Tensor | None], tangents: Sequence[Tensor | None], constants: Group, options: Group
    ) -> tuple[Any, Any]:
        """Return outputs and t_outputs for K tangents ``[K, ...]`` of each x, None for zero."""
        primals, t_primals = (self.x(*group) for group in (x, tangents))  # type: ignore[arg-type]
        call = DualForward(primals, t_primals, constants, options)
        if torch.compiler.is_compiling() and self._can_write_out(options):
            results = self.functions.dual_reference(call)
        else:
            results = self.dual_forward(call)
        num = len(self.outputs._fields)  # type: ignore[attr-defined]
        return self.outputs(*results[:num]), self.outputs(*results[num : 2 * num])

    def joint_gradients(self, call: DualBackward) -> tuple[Tensor, ...]:
        """Run the dual backward, whose gradients in x and h raise where they would be of third order."""
        given = [y for y in (*call.h, *call.x) if y is not None]
        if torch.is_grad_enabled() and any(map(_torch.requires_grad_at_any_level, given)):
            call = call._replace(h=self._guarded(call.h), x=self._guarded(call.x))
        return self.dual_backward.run(call)

    def _guarded(self, group: Any) -> Any:
        tensors = iter(guarded(self.refuse_third_order, *(y for y in group if y is not None)))
        return type(group)(*(None if y is None else next(tensors) for y in group))

    def _can_write_out(self, options: Any) -> bool:
        return self._is_written_out and options.implementation != "triton"

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
