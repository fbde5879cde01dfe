"""The norm outside of transforms, tangents and traces, as in ordinary training: the same functions, less Python.

The wiring's Function costs about as much as a small norm itself.
"""

from typing import Any

import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from ..._torch import (
    apply,
    can_skip_dispatcher,
    forward_mode_active,
    inside_transform,
    native_layer_norm,
    native_layer_norm_backward,
    unviewed,
)
from .._batched_grads import maps_batched_grads
from .._calls import Backward, Forward
from .._ordinary import is_ordinary
from .._twice_differentiable import Out
from .op import OP, NoConstants, Options, Primals, State, canonical

_NO_CONSTANTS = NoConstants()
_OF_X = (True, False, False)
_SMALL = 1 << 17  # elements up to which PyTorch's own modulation, which keeps n, is faster than what saves its passes
_OWN_CALL = 1 << 14  # elements of a sample from which a fused call of its own is


def plain_norm(operands: Primals, groups: int, options: Options) -> Tensor | None:
    """Return the norm of operands in their own shapes, or None where more than a gradient may be taken of it."""
    if not is_ordinary() or not can_skip_dispatcher(*operands):
        return None
    if torch.is_grad_enabled() and any(y is not None and y.requires_grad for y in operands):
        return apply(PlainNormFunction, *operands, groups, options)
    return _outputs(operands, groups, options)[0]


def plain_modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor | None:
    """Return the modulated layer norm as PyTorch's ops around the bare one, where they are faster; None elsewhere."""
    if not is_ordinary() or not x.is_cpu:
        return None
    if not at_least_float32(x) == x.dtype == scale.dtype == shift.dtype:
        return None
    if x.numel() > max(_SMALL, x.shape[0] * _OWN_CALL) or not can_skip_dispatcher(x, scale, shift):
        return None
    if not (torch.is_grad_enabled() and x.requires_grad):
        n, _, _ = native_layer_norm(x, x.shape[-1:], None, None, eps)
    else:
        n = apply(BareNormFunction, x, eps)
    return torch.addcmul(_beside(shift, n), n, 1 + _beside(scale, n))


def _beside(y: Tensor, x: Tensor) -> Tensor:
    """Shape y ``[B, D]`` so that it broadcasts with x ``[B, ..., D]``."""
    return y if y.ndim in (1, x.ndim) else y.view(y.shape[0], *(1,) * (x.ndim - 2), y.shape[-1])


class BareNormFunction(torch.autograd.Function):
    """Layer norm without weights, by PyTorch's fused kernels; inputs: x, eps. Its backward is differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        n, mean, rstd = native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.eps = eps
        ctx.save_for_backward(x, mean, rstd)
        return n

    @staticmethod
    @maps_batched_grads
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        x, mean, rstd = ctx.saved_tensors
        if not _may_differentiate():
            return native_layer_norm_backward(g, x, x.shape[-1:], mean, rstd, None, None, _OF_X)[0], None
        primals = canonical(1, Primals(x, None, None), x)
        state = State(*(y.reshape(primals.x.shape[:2]) for y in (mean, rstd)))
        options = Options(ctx.eps, True, True, str(x.dtype).removeprefix("torch."), "aten")
        wants = Primals(*_OF_X)  # type: ignore[arg-type]
        call = Backward(Out(g.reshape(primals.x.shape)), primals, _NO_CONSTANTS, Out(None), state, options, wants)  # type: ignore[arg-type]
        return OP.backward.run(call)[0].reshape(x.shape), None


def _may_differentiate() -> bool:
    """Return True in a backward pass that may be differentiated."""
    return torch.is_grad_enabled() or forward_mode_active() or inside_transform()


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
        grads = OP.backward.run(call) if _may_differentiate() else OP.backward.compute(call)
        used = zip(grads, operands, wants)
        return *(_like(dx, y) if y is not None and wanted else None for dx, y, wanted in used), None, None


def _outputs(operands: Primals, groups: int, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    out, *state = OP.forward.compute(Forward(canonical(groups, operands, operands.x), _NO_CONSTANTS, options))
    return unviewed(out.view(operands.x.shape)), *state


def _like(dx: Tensor, y: Tensor) -> Tensor:
    """Return the gradient of y, which :func:`canonical` has expanded if it is one row for all groups."""
    return dx.reshape(y.shape) if dx.numel() == y.numel() else dx.sum(0).reshape(y.shape)
