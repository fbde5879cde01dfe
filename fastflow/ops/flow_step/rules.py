"""Custom ops and derivative rules that make the flow-step kernels differentiable.

A kernel computes the value, and the one gradient that ordinary training asks for. Every other derivative is written
in plain PyTorch, which is differentiable again: both functions are polynomials, so only speed is at stake there.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..._torch import inside_transform
from ...kernels.flow_step import reference
from ...kernels.flow_step.reference import Coefficient, accumulation_dtype, row_sum, rows
from .._tangents import complete_tangents, has_tangent
from ..random import GaussianNoise
from . import custom_ops as library

Coefficients = tuple[Coefficient, Coefficient, Coefficient]


# The operands of an affine combination, in this order throughout: x1, x0, z, each [B, ...] or None where the term is
# drawn or absent; their coefficients c1, c0, cz, each [B], or 0-d on the CPU for a constant; then the streams
# (seed, offset) of a drawn x0 and of a drawn z, empty where the term is given or absent.


def affine(x1: Tensor, x0: Any, z: Any, coefficients: Coefficients, dtype: torch.dtype) -> Tensor:
    """``c1 x1 + c0 x0 + cz z`` by the interpolation kernel."""
    operands = _operands(x1, x0, z, coefficients)
    if not torch.compiler.is_compiling():
        return AffineFunction.apply(*operands, dtype)
    if inside_transform() or has_tangent(*operands[:6]):
        return _affine(operands).to(dtype)
    return library.affine(*operands, dtype)


def squared_error(pred: Tensor, x1: Tensor, x0: Any, z: Any, coefficients: Coefficients) -> Tensor:
    """``sum_j (pred - c1 x1 - c0 x0 - cz z)_bj^2``, fp32 ``[B]``, by the loss kernel."""
    operands = _operands(x1, x0, z, coefficients)
    if not torch.compiler.is_compiling():
        return SquaredErrorFunction.apply(pred, *operands)
    if inside_transform() or has_tangent(pred, *operands[:6]):
        return _squared_error(pred, *operands)
    return library.squared_error(pred, *operands)


class AffineFunction(torch.autograd.Function):
    """:func:`affine`."""

    @staticmethod
    def forward(
        x1: Any, x0: Any, z: Any, c1: Any, c0: Any, cz: Any, x0_stream: Any, z_stream: Any, dtype: torch.dtype
    ) -> Tensor:
        return library.affine(x1, x0, z, c1, c0, cz, x0_stream, z_stream, dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.x0_stream, ctx.z_stream, ctx.dtype = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad = grad.to(accumulation_dtype(grad))
        return *_pullback(grad, _saved(ctx), ctx.needs_input_grad), None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        return _pushforward(tangents, _saved(ctx)).to(ctx.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _vmapped(lambda *xs: _affine(xs[:-1]).to(xs[-1]), in_dims, inputs)


class SquaredErrorFunction(torch.autograd.Function):
    """:func:`squared_error`."""

    @staticmethod
    def forward(
        pred: Any, x1: Any, x0: Any, z: Any, c1: Any, c0: Any, cz: Any, x0_stream: Any, z_stream: Any
    ) -> Tensor:
        return library.squared_error(pred, x1, x0, z, c1, c0, cz, x0_stream, z_stream)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.x0_stream, ctx.z_stream = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        pred, *operands = _saved(ctx)
        grads: list[Tensor | None] = [None] * 7
        if ctx.needs_input_grad[0]:
            grads[0] = _squared_error_grad(grad, pred, operands)
        if any(ctx.needs_input_grad[1:7]):
            residual = pred - _affine(operands)
            grads[1:] = _pullback(-2 * rows(grad, residual) * residual, operands, ctx.needs_input_grad[1:])
        return *grads, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        pred, *operands = _saved(ctx)
        return row_sum(2 * (pred - _affine(operands)) * _residual_tangent(tangents, operands))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        return _vmapped(_squared_error, in_dims, inputs)


class SquaredErrorGradFunction(torch.autograd.Function):
    """``2 grad_b (pred - c1 x1 - c0 x0 - cz z)`` by the backward kernel."""

    @staticmethod
    def forward(
        grad: Any, pred: Any, x1: Any, x0: Any, z: Any, c1: Any, c0: Any, cz: Any, x0_stream: Any, z_stream: Any
    ) -> Tensor:
        return library.squared_error_grad(grad, pred, x1, x0, z, c1, c0, cz, x0_stream, z_stream)

    setup_context = SquaredErrorFunction.setup_context

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Any, ...]:
        grad, pred, *operands = _saved(ctx)
        cotangent = cotangent.to(accumulation_dtype(cotangent))
        scaled = 2 * rows(grad, cotangent) * cotangent
        grad_of_grad = None
        if ctx.needs_input_grad[0]:
            grad_of_grad = row_sum(2 * cotangent * (pred - _affine(operands))).to(grad.dtype)
        rest = _pullback(-scaled, operands, ctx.needs_input_grad[2:])
        return grad_of_grad, scaled.to(pred.dtype), *rest, None, None

    @staticmethod
    def jvp(ctx: Any, grad_tangent: Tensor, *tangents: Any) -> Tensor:
        grad, pred, *operands = _saved(ctx)
        residual, tangent = pred - _affine(operands), _residual_tangent(tangents, operands)
        return (2 * (rows(grad, tangent) * tangent + rows(grad_tangent, residual) * residual)).to(pred.dtype)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Tensor, int]:
        def plain(grad: Tensor, pred: Tensor, *operands: Any) -> Tensor:
            residual = pred - _affine(operands)
            return (2 * rows(grad, residual) * residual).to(pred.dtype)

        return _vmapped(plain, in_dims, inputs)


library.affine.register_autograd(AffineFunction.backward, setup_context=AffineFunction.setup_context)
library.squared_error.register_autograd(SquaredErrorFunction.backward, setup_context=SquaredErrorFunction.setup_context)


def _operands(x1: Tensor, x0: Any, z: Any, coefficients: Coefficients) -> tuple[Any, ...]:
    """Tensors on one side, streams of drawn noise on the other; constants become 0-d CPU tensors."""
    given = [None if isinstance(x, GaussianNoise) else x for x in (x0, z)]
    streams = [(x.seed, x.offset) if isinstance(x, GaussianNoise) else () for x in (x0, z)]
    return x1, *given, *(c.float() if isinstance(c, Tensor) else torch.tensor(c) for c in coefficients), *streams


def _saved(ctx: Any) -> tuple[Any, ...]:
    return *ctx.saved_tensors, ctx.x0_stream, ctx.z_stream


def _terms(operands: Any) -> list[tuple[Any, Tensor]]:
    """``(x, c)`` of the three terms, drawn ones as tensors."""
    x1, x0, z, c1, c0, cz, *streams = operands
    dtype = accumulation_dtype(x1)
    x0, z = (
        GaussianNoise(*stream).materialize(x1.shape, dtype=dtype, device=x1.device) if stream else x
        for x, stream in zip((x0, z), streams, strict=True)
    )
    return [(x1, c1), (x0, c0), (z, cz)]


def _affine(operands: Any) -> Tensor:
    xs, coefficients = zip(*_terms(operands), strict=True)
    completed = complete_tangents(*xs, *coefficients)
    return reference.affine(completed[:3], completed[3:])


def _squared_error(pred: Tensor, *operands: Any) -> Tensor:
    return row_sum((pred - _affine(operands)).square())


def _squared_error_grad(grad: Tensor, pred: Tensor, operands: Any) -> Tensor:
    if torch.is_grad_enabled():
        return SquaredErrorGradFunction.apply(grad, pred, *operands)
    return library.squared_error_grad(grad, pred, *operands)


def _pushforward(tangents: Any, operands: Any) -> Tensor:
    """The tangent of :func:`_affine`: the tangents combined with c, plus the terms combined with the tangents of c."""
    total = torch.zeros_like(operands[0], dtype=accumulation_dtype(operands[0]))
    for (x, c), x_tangent, c_tangent in zip(_terms(operands), tangents[:3], tangents[3:6], strict=True):
        if x_tangent is not None:
            total = total + rows(c, total) * x_tangent
        if c_tangent is not None and x is not None:
            total = total + rows(c_tangent, total) * x
    return total


def _residual_tangent(tangents: Any, operands: Any) -> Tensor:
    return tangents[0] - _pushforward(tangents[1:], operands)


def _pullback(grad: Tensor, operands: Any, needed: Any) -> list[Tensor | None]:
    """Gradients of x1, x0, z, c1, c0, cz for the cotangent grad of :func:`_affine`."""
    grads: list[Tensor | None] = [None] * 6
    if not any(needed[:6]):
        return grads
    for i, (x, c) in enumerate(_terms(operands)):
        if needed[i] and x is not None:
            grads[i] = (rows(c, grad) * grad).to(x.dtype)
        if needed[3 + i] and x is not None:
            per_sample = row_sum(grad * x)
            grads[3 + i] = (per_sample if c.ndim else per_sample.sum()).to(c.dtype)
    return grads


def _vmapped(plain: Callable[..., Tensor], in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Tensor, int]:
    """Under vmap the plain function serves; only tensors are handed to torch.vmap."""
    index = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]

    def call(*tensors: Tensor) -> Tensor:
        full = list(inputs)
        for i, x in zip(index, tensors, strict=True):
            full[i] = x
        return plain(*full)

    return torch.vmap(call, tuple(in_dims[i] for i in index))(*(inputs[i] for i in index)), 0
