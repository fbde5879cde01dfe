"""The norm outside of transforms, tangents and traces, as in ordinary training: the same functions, less Python.

The wiring's Function costs about as much as a small norm itself.
"""

from typing import Any

import torch
from torch import Tensor

from ..._torch import apply, can_skip_dispatcher, forward_mode_active, inside_transform
from .._batched_grads import maps_batched_grads
from .._calls import Backward, Forward
from .._twice_differentiable import Out
from .op import OP, NoConstants, Options, Primals, State, canonical

_NO_CONSTANTS = NoConstants()


def plain_norm(operands: Primals, groups: int, options: Options) -> Tensor | None:
    """Return the norm of operands in their own shapes, or None where more than a gradient may be taken of it."""
    if torch.compiler.is_compiling() or forward_mode_active() or not can_skip_dispatcher(*operands):
        return None
    if torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in operands):
        return apply(PlainNormFunction, *operands, groups, options)
    return _outputs(operands, groups, options)[0]


class PlainNormFunction(torch.autograd.Function):
    """:func:`plain_norm`; inputs: x, scale, shift, groups, options. Its backward is the op's, so differentiable."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        operands, ctx.groups, ctx.options = Primals(*inputs[:3]), *inputs[3:]
        out, mean, rstd = _outputs(operands, *inputs[3:])
        ctx.save_for_backward(*operands, mean, rstd)
        return out

    @staticmethod
    @maps_batched_grads
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, scale, shift, *state = ctx.saved_tensors
        operands, wants = Primals(x, scale, shift), Primals(*ctx.needs_input_grad[:3])
        primals = canonical(ctx.groups, operands, x)
        g = g.reshape(primals.x.shape)
        call = Backward(Out(g), primals, _NO_CONSTANTS, Out(None), State(*state), ctx.options, wants)  # type: ignore[arg-type]
        is_first = not (torch.is_grad_enabled() or forward_mode_active() or inside_transform())
        grads = OP.backward.compute(call) if is_first else OP.backward.run(call)
        used = zip(grads, operands, wants)
        return *(_like(dx, y) if y is not None and wanted else None for dx, y, wanted in used), None, None


def _outputs(operands: Primals, groups: int, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    out, *state = OP.forward.compute(Forward(canonical(groups, operands, operands.x), _NO_CONSTANTS, options))
    return out.view(operands.x.shape), *state


def _like(dx: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of y, which :func:`canonical` has expanded if it is one row for all groups."""
    return dx.reshape(y.shape) if dx.numel() == y.numel() else dx.sum(0).reshape(y.shape)
