"""Derivative rules that make the flow-step kernels differentiable.

A kernel computes the value, and the one gradient that ordinary training needs. Every other derivative is written in
PyTorch operations, which are differentiable again: both functions are polynomials, so this costs speed only.
"""

from typing import Any

import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from ..._torch import inside_transform
from ...kernels.flow_step import reference
from ...kernels.flow_step.reference import row_sum, rows
from .._batched_grads import maps_batched_grads
from .._tangents import complete_tangents, has_tangent
from . import custom_ops
from .batching import vmapped
from .problem import Combination, Operands, Term


def affine(combination: Combination, dtype: torch.dtype) -> Tensor:
    """Return ``c1 x1 + c0 x0 + cz z`` in dtype, by the interpolation kernel."""
    operands = combination.flatten()
    if not torch.compiler.is_compiling():
        return AffineFunction.apply(*operands, dtype)
    if inside_transform() or has_tangent(*operands.tensors):
        return _affine(operands).to(dtype)
    return custom_ops.affine(*operands, dtype)


def squared_error(pred: Tensor, combination: Combination) -> Tensor:
    """Return ``sum_j (pred - c1 x1 - c0 x0 - cz z)_bj^2``, fp32 ``[B]``, by the loss kernel."""
    operands = combination.flatten()
    if not torch.compiler.is_compiling():
        return SquaredErrorFunction.apply(pred, *operands)
    if inside_transform() or has_tangent(pred, *operands.tensors):
        return _squared_error(pred, operands)
    return custom_ops.squared_error(pred, *operands)


class AffineFunction(torch.autograd.Function):
    """:func:`affine`; inputs: operands, dtype."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return custom_ops.affine(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *operands, ctx.dtype = inputs
        _save(ctx, Operands(*operands))

    @staticmethod
    @maps_batched_grads
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (operands,) = _saved(ctx)
        *needed, _ = ctx.needs_input_grad
        return *_pullback(grad.to(at_least_float32(grad)), operands, Operands(*needed)), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        (operands,) = _saved(ctx)
        *operand_tangents, _ = tangents
        return _pushforward(Operands(*operand_tangents), operands).to(ctx.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        def function(*inputs: Any) -> Tensor:
            *operands, dtype = inputs
            return _affine(Operands(*operands)).to(dtype)

        return vmapped(function, in_dims, inputs)


class SquaredErrorFunction(torch.autograd.Function):
    """:func:`squared_error`; inputs: pred, operands."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return custom_ops.squared_error(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pred, *operands = inputs
        _save(ctx, Operands(*operands), pred)

    @staticmethod
    @maps_batched_grads
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        pred, operands = _saved(ctx)
        pred_needed, *rest = ctx.needs_input_grad
        needed = Operands(*rest)
        grad_pred = _squared_error_grad(grad, pred, operands) if pred_needed else None
        if not any(needed.tensors):
            return grad_pred, *_NO_GRADIENTS
        residual = pred - _affine(operands)
        return grad_pred, *_pullback(-2 * rows(grad, residual) * residual, operands, needed)

    @staticmethod
    def jvp(ctx: Any, pred_tangent: Tensor, *tangents: Any) -> Tensor:
        pred, operands = _saved(ctx)
        residual_tangent = pred_tangent - _pushforward(Operands(*tangents), operands)
        return row_sum(2 * (pred - _affine(operands)) * residual_tangent)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        def function(pred: Tensor, *operands: Any) -> Tensor:
            return _squared_error(pred, Operands(*operands))

        return vmapped(function, in_dims, inputs)


class SquaredErrorGradFunction(torch.autograd.Function):
    """``2 grad_b (pred - c1 x1 - c0 x0 - cz z)`` by the backward kernel; inputs: grad, pred, operands."""

    @staticmethod
    def forward(*inputs: Any) -> Tensor:
        return custom_ops.squared_error_grad(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, pred, *operands = inputs
        _save(ctx, Operands(*operands), grad, pred)

    @staticmethod
    @maps_batched_grads
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        grad, pred, operands = _saved(ctx)
        grad_needed, _, *needed = ctx.needs_input_grad
        cotangent = cotangent.to(at_least_float32(cotangent))
        scaled = 2 * rows(grad, cotangent) * cotangent
        grad_of_grad = None
        if grad_needed:
            grad_of_grad = row_sum(2 * cotangent * (pred - _affine(operands))).to(grad.dtype)
        return grad_of_grad, scaled.to(pred.dtype), *_pullback(-scaled, operands, Operands(*needed))

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor, pred_tangent: Tensor, *tangents: Any) -> Tensor:
        grad, pred, operands = _saved(ctx)
        residual = pred - _affine(operands)
        tangent = pred_tangent - _pushforward(Operands(*tangents), operands)
        return (2 * (rows(grad, tangent) * tangent + rows(grad_tangent, residual) * residual)).to(pred.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        def function(grad: Tensor, pred: Tensor, *operands: Any) -> Tensor:
            residual = pred - _affine(Operands(*operands))
            return (2 * rows(grad, residual) * residual).to(pred.dtype)

        return vmapped(function, in_dims, inputs)


custom_ops.affine.register_autograd(AffineFunction.backward, setup_context=AffineFunction.setup_context)
custom_ops.squared_error.register_autograd(
    SquaredErrorFunction.backward, setup_context=SquaredErrorFunction.setup_context
)

_NO_GRADIENTS = Operands(None, None, None, None, None, None, None, None)


def _save(ctx: Any, operands: Operands, *before: Tensor) -> None:
    tensors = (*before, *operands.tensors)
    ctx.save_for_backward(*tensors)
    ctx.save_for_forward(*tensors)
    ctx.streams = operands.streams


def _saved(ctx: Any) -> tuple[Any, ...]:
    """Return the tensors saved before the operands, then the operands."""
    *before, x1, x0, z, c1, c0, cz = ctx.saved_tensors
    return *before, Operands(x1, x0, z, c1, c0, cz, *ctx.streams)


def _drawn(operands: Operands) -> Operands:
    return operands.draw(at_least_float32(operands.x1))


def _affine(operands: Operands) -> Tensor:
    x1, x0, z, *coefficients = complete_tangents(*_drawn(operands).tensors)
    return reference.affine((x1, x0, z), coefficients)


def _squared_error(pred: Tensor, operands: Operands) -> Tensor:
    return row_sum((pred - _affine(operands)).square())


def _squared_error_grad(grad: Tensor, pred: Tensor, operands: Operands) -> Tensor:
    if torch.is_grad_enabled():
        return SquaredErrorGradFunction.apply(grad, pred, *operands)
    return custom_ops.squared_error_grad(grad, pred, *operands)


def _pushforward(tangents: Operands, operands: Operands) -> Tensor:
    """Return the tangent of the combination, ``sum c dx + dc x``."""
    total = torch.zeros_like(operands.x1, dtype=at_least_float32(operands.x1))
    for term, tangent in zip(_drawn(operands).terms, tangents.terms, strict=True):
        if tangent.x is not None:
            total = total + rows(term.c, total) * tangent.x
        if tangent.c is not None and term.x is not None:
            total = total + rows(tangent.c, total) * term.x
    return total


def _pullback(grad: Tensor, operands: Operands, needed: Operands) -> Operands:
    """Return the gradients of the operands for the cotangent grad of the combination."""
    if not any(needed.tensors):
        return _NO_GRADIENTS
    x1, x0, z = (_term_gradients(grad, *pair) for pair in zip(_drawn(operands).terms, needed.terms, strict=True))
    return Operands(x1.x, x0.x, z.x, x1.c, x0.c, z.c, None, None)


def _term_gradients(grad: Tensor, term: Term, needed: Term) -> Term:
    if term.x is None:
        return Term(None, None)
    grad_x = grad_c = None
    if needed.x:
        grad_x = (rows(term.c, grad) * grad).to(term.x.dtype)
    if needed.c:
        per_sample = row_sum(grad * term.x)
        grad_c = (per_sample if term.c.ndim else per_sample.sum()).to(term.c.dtype)
    return Term(grad_x, grad_c)
