"""Norms written out, whose tangents can be differentiated.

PyTorch's fused layer, batch and instance norms compute the tangent from the saved mean and reciprocal deviation and
treat these as constants afterwards, so a gradient through the tangent is silently wrong (pytorch#196700). So is one
through ``torch.autograd.functional.jvp``, which differentiates the backward: there they are constants too.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._dtypes import at_least_float32
from .._torch import inside_transform, native_layer_norm_backward
from ._batched_grads import maps_batched_grads


class Standardized(NamedTuple):
    """y = (x − mean) * rstd, with mean and rstd = 1 / sqrt(var + eps) over dims, which they keep."""

    y: Tensor
    mean: Tensor
    rstd: Tensor


def standardized(x: Tensor, dims: tuple[int, ...], eps: float) -> Standardized:
    """Standardize x over dims, at least in float32."""
    x = x.to(at_least_float32(x))
    mean = x.mean(dim=dims, keepdim=True)
    centred = x - mean
    rstd = _reciprocal_rms(centred, dims, eps)
    return Standardized(centred * rstd, mean, rstd)


def layer_norm(x: Tensor, num_dims: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """Normalize over the last num_dims dimensions; compute at least in float32, return x's dtype."""
    return affine(standardized(x, tuple(range(-num_dims, 0)), eps).y, weight, bias).to(x.dtype)


def recorded_layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """Call PyTorch's fused layer norm, with a backward that can be differentiated in reverse mode to every order."""
    if weight is None and bias is not None:
        weight = torch.ones_like(bias)  # without it, PyTorch's backward refuses mixed dtypes
    weight, bias = (None if y is None else autocast(y) for y in (weight, bias))
    return LayerNormFunction.apply(autocast(x), weight, bias, shape, eps)


def autocast(x: Tensor) -> Tensor:
    """Widen x where autocast runs layer norm in float32: on every device but the CPU."""
    device = x.device.type
    if device == "cpu" or x.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return x
    return x.float()


def is_recorded(*tensors: Tensor | None) -> bool:
    """Return True where autograd's tape, which may be differentiated again, records a function of plain tensors."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    given = [x for x in tensors if x is not None]
    return any(x.requires_grad for x in given) and all(type(x) in (Tensor, torch.nn.Parameter) for x in given)


class LayerNormFunction(torch.autograd.Function):
    """:func:`recorded_layer_norm`; inputs: x, weight, bias, shape, eps."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        x, weight, bias, ctx.shape, ctx.eps = inputs
        out, mean, rstd = torch.native_layer_norm(x, ctx.shape, weight, bias, ctx.eps)
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        return out

    @staticmethod
    @maps_batched_grads
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, weight, bias, mean, rstd = ctx.saved_tensors
        needed = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or inside_transform():  # PyTorch's rule for vmap takes one dtype only
            grads = _layer_norm_grads(grad, x, weight, bias, ctx.shape, ctx.eps)
        else:
            grads = native_layer_norm_backward(grad, x, ctx.shape, mean, rstd, weight, bias, needed)
        return *(dx if is_needed else None for dx, is_needed in zip(grads, needed)), None, None


def _layer_norm_grads(
    grad: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], eps: float
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    dims = tuple(range(-len(shape), 0))
    y, _, rstd = standardized(x, dims, eps)
    g = grad.to(y.dtype)
    gy = affine(g, weight, None)
    dx = rstd * (gy - gy.mean(dims, keepdim=True) - y * (gy * y).mean(dims, keepdim=True))
    dw, db = ((z.reshape(-1, *shape).sum(0)) for z in (g * y, g))
    return (
        dx.to(x.dtype),
        None if weight is None else dw.to(weight.dtype),
        None if bias is None else db.to(bias.dtype),
    )


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _reciprocal_rms(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(dim=dims, keepdim=True) + eps)
