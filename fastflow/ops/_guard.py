"""Raise for a missing derivative, but only if autograd is asked for it."""

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from torch import Tensor


class GuardFunction(torch.autograd.Function):
    """The identity on tensors whose gradients may be missing; inputs: refuse, tensors.

    ``ctx.needs_input_grad`` says which inputs are in the graph, not which gradients the caller asked for. Autograd runs
    this node only for the latter, and then ``refuse`` raises if there is no gradient to pass on.
    """

    @staticmethod
    def forward(refuse: Callable[[], NoReturn], *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.refuse = inputs[0]
        ctx.save_for_forward(*inputs[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        if all(g is None for g in grads):
            ctx.refuse()
        return None, *grads

    @staticmethod
    def jvp(ctx: Any, _: None, *tangents: Tensor | None) -> tuple[Tensor, ...]:
        given = zip(tangents, ctx.saved_tensors)
        return tuple(torch.zeros_like(x) if t is None else t.view_as(t) for t, x in given)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], refuse: Any, *tensors: Tensor) -> tuple[Any, tuple[Any, ...]]:
        return GuardFunction.apply(refuse, *tensors), in_dims[1:]


def guarded(refuse: Callable[[], NoReturn], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the same tensors; ``refuse`` is called if a gradient of theirs is asked for and all of them are None."""
    return GuardFunction.apply(refuse, *tensors)
