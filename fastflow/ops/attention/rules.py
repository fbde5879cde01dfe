"""Derivative rules of the attention ops; ``kernels/attention/README.md`` derives them.

Two pairs of kernels serve every second-order mode. The tangent of a VJP in the direction (tQ, tK, tV, tG) is the joint
backward with G := tG and H := G. The VJP of a VJP with cotangents (gQ, gK, gV) is, for G, the tangent forward in that
direction and, for Q, K and V, the joint backward with G := 0 and H := G. A third derivative raises, and so does a
forward mode inside a forward mode.

Each ``Function`` takes the arguments of the op it wraps, in the same order. Autograd does not materialise zeros for
them: an absent cotangent is None and costs nothing.
"""

import inspect
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..._torch import apply, can_skip_dispatcher, forward_mode_active, inside_jvp, inside_transform
from .._custom_op import call
from . import batching as vmap_rules
from . import custom_ops as library


def _forward(op: Any) -> Any:
    """The ``forward`` that runs this op."""

    def forward(*args: Any) -> Any:
        return call(op, *args)

    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]  # apply asks at every call
    return staticmethod(forward)


class AttentionFunction(torch.autograd.Function):
    """``fastflow::attention``."""

    op = library.attention
    forward = _forward(op)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.scale, ctx.is_causal, ctx.backend = inputs
        _save(ctx, *tensors, *output)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, _: Any) -> tuple[Any, ...]:
        _refuse_mask(ctx.needs_input_grad[3])
        if g is None:
            return (None,) * 7
        args = (*ctx.saved_tensors, *_options(ctx))
        if differentiating(g, *args) or not can_skip_dispatcher(g, *args[:3]):
            grads = run(AttentionBackwardFunction, g.unsqueeze(0), *args)
            return *(x.squeeze(0) for x in grads), *(None,) * 4
        return *library.backward_of_one(g, *args), *(None,) * 4

    @staticmethod
    def jvp(ctx: Any, tq: Any, tk: Any, tv: Any, t_mask: Any, *_: Any) -> tuple[Tensor, Tensor]:
        _refuse_mask(t_mask is not None)
        q, k, v, mask, out, _state = ctx.saved_tensors
        _out, t_out, _state, t_state = AttentionDualFunction.apply(q, k, v, *single(tq, tk, tv), mask, *_options(ctx))
        return _laid_out(t_out.squeeze(0), out.stride()), t_state.squeeze(0)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return vmap_rules.attention(AttentionFunction.apply, info, in_dims, *args)


class AttentionBackwardFunction(torch.autograd.Function):
    """``fastflow::attention_backward``. Its derivatives take out and state for what they are: functions of q, k, v."""

    op = library.attention_backward
    forward = _forward(op)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.scale, ctx.is_causal, ctx.backend = inputs
        ctx.strides = [x.stride() for x in output]
        _save(ctx, *tensors)

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Any, ...]:
        _refuse_mask(ctx.needs_input_grad[4])
        if all(x is None for x in directions):
            return (None,) * 10
        g, q, k, v, mask, out, state = ctx.saved_tensors
        _out, t_out, _state, t_state = AttentionDualFunction.apply(q, k, v, *directions, mask, *_options(ctx))
        grads: tuple[Any, ...] = (None, None, None)
        if any(ctx.needs_input_grad[1:4]):
            grads = AttentionDualBackwardFunction.apply(
                None, g, q, k, v, *directions, mask, out, t_out, state, t_state, *_options(ctx)
            )[:3]
        return t_out, *grads, *(None,) * 6

    @staticmethod
    def jvp(
        ctx: Any, tg: Any, tq: Any, tk: Any, tv: Any, t_mask: Any, t_out: Any, t_state: Any, *_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        _refuse_mask(t_mask is not None)
        g, q, k, v, mask, out, state = ctx.saved_tensors
        if t_out is None:
            tangents = AttentionBackwardFunction.apply(tg, q, k, v, mask, out, state, *_options(ctx))
        else:
            tq, tk, tv, t_out, t_state = single(tq, tk, tv, t_out, t_state)
            of_each = [
                AttentionDualBackwardFunction.apply(
                    tg_i, g_i[None], q, k, v, tq, tk, tv, mask, out, t_out, state, t_state, *_options(ctx)
                )[:3]
                for g_i, tg_i in zip(g, [None] * len(g) if tg is None else tg)
            ]
            tangents = (torch.stack(xs) for xs in zip(*of_each))
        return tuple(_laid_out(x, strides) for x, strides in zip(tangents, ctx.strides))  # type: ignore[return-value]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return vmap_rules.attention_backward(AttentionBackwardFunction.apply, info, in_dims, *args)


class AttentionDualFunction(torch.autograd.Function):
    """``fastflow::attention_dual``."""

    op = library.attention_dual
    forward = _forward(op)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.scale, ctx.is_causal, ctx.backend = inputs
        _save(ctx, *tensors, *output)

    @staticmethod
    def backward(ctx: Any, g: Tensor | None, h: Tensor | None, *_: Any) -> tuple[Any, ...]:
        _refuse_mask(ctx.needs_input_grad[6])
        q, k, v, tq, tk, tv, mask, out, t_out, state, t_state = ctx.saved_tensors
        if h is not None:
            grads = run(
                AttentionDualBackwardFunction,
                g,
                h,
                q,
                k,
                v,
                tq,
                tk,
                tv,
                mask,
                out,
                t_out,
                state,
                t_state,
                *_options(ctx),
            )
            return *(None if library.is_absent(x) else x for x in grads), *(None,) * 4
        if g is not None:
            grads = run(AttentionBackwardFunction, g.unsqueeze(0), q, k, v, mask, out, state, *_options(ctx))
            return *(x.squeeze(0) for x in grads), *(None,) * 7
        return (None,) * 10

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> NoReturn:
        raise NotImplementedError(
            "fastflow.attention does not support forward-mode AD inside forward-mode AD (a jvp of a jvp, whatever lies "
            "between): take a second derivative as jvp(grad(f)) or grad(jvp(f))"
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return vmap_rules.attention_dual(AttentionDualFunction.apply, info, in_dims, *args)


class AttentionDualBackwardFunction(torch.autograd.Function):
    """``fastflow::attention_dual_backward``, the last derivative there is.

    Inside a bare ``forward_ad.dual_level`` a backward pass computes the tangent of every gradient, wanted or not. There
    the third derivative is NaN, for raising would forbid the backward pass itself.
    """

    op = library.attention_dual_backward
    forward = _forward(op)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_forward(*output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> NoReturn:
        _refuse_third_order()

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        if inside_jvp():
            _refuse_third_order()
        return tuple(torch.full_like(x, torch.nan) for x in ctx.saved_tensors)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        return vmap_rules.attention_dual_backward(AttentionDualBackwardFunction.apply, info, in_dims, *args)


def run(function: Any, *args: Any) -> Any:
    """``function.apply(*args)``, without a graph where nobody can ask for a derivative."""
    return apply(function, *args) if differentiating(*args) else call(function.op, *args)


def differentiating(*args: Any) -> bool:
    """Return True if a derivative of a function of args could be wanted, or the function could be mapped."""
    recording = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
    return recording or forward_mode_active() or inside_transform()


for function in (AttentionFunction, AttentionBackwardFunction, AttentionDualFunction, AttentionDualBackwardFunction):
    function.op.register_autograd(function.backward, setup_context=function.setup_context)

library.attention.register_vmap(partial(vmap_rules.attention, library.attention))
library.attention_backward.register_vmap(partial(vmap_rules.attention_backward, library.attention_backward))
library.attention_dual.register_vmap(partial(vmap_rules.attention_dual, library.attention_dual))
library.attention_dual_backward.register_vmap(
    partial(vmap_rules.attention_dual_backward, library.attention_dual_backward)
)


def _save(ctx: Any, *tensors: Tensor | None) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)


def _options(ctx: Any) -> tuple[float, bool, str]:
    return ctx.scale, ctx.is_causal, ctx.backend


def single(*tangents: Tensor | None) -> tuple[Tensor | None, ...]:
    """Each with a tangent axis of length 1."""
    return tuple(None if x is None else x.unsqueeze(0) for x in tangents)


def _laid_out(x: Tensor, strides: tuple[int, ...]) -> Tensor:
    """x in the memory order of a dense tensor with these strides: forward AD wants tangents laid out as primals are."""
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    return x.permute(order).contiguous().permute([order.index(axis) for axis in range(x.ndim)])


def _refuse_mask(wanted: bool) -> None:
    if wanted:
        raise NotImplementedError(
            "fastflow.attention cannot differentiate with respect to attn_mask under this combination of transforms; "
            "pass attn_mask.detach() if its derivative is not wanted"
        )


def _refuse_third_order() -> NoReturn:
    raise NotImplementedError(
        "fastflow.attention has no third derivative: this would differentiate the backward of a tangent. "
        "Detach one of the inner derivatives, or use plain attention, softmax(QKᵀ) V, for this call"
    )
