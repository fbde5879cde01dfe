"""Derivative rules of the Triton probe kernels.

With fixed probes ε, ``dots: p ↦ Σ_j ε_kbj p_kbj`` is linear and ``scaled: c ↦ c_kb ε_kbj`` is its adjoint. So each is
the other's backward, to any order, and each is its own tangent map.
"""

from typing import Any

import torch
from torch import Tensor

from ..._torch import inside_transform
from ...kernels.divergence import reference
from .._batched_grads import maps_batched_grads
from .._tangents import has_tangent
from . import custom_ops
from .custom_ops import Draw

_NO_GRADIENTS = (None,) * len(Draw._fields)


def probe_dots(products: Tensor, draw: Draw) -> Tensor:
    """Return ``Σ_j ε_kbj products_kbj``, fp32 ``[K, B]``, with probes drawn inside the kernel.

    products: ``[K, B, ...]``.
    """
    if not torch.compiler.is_compiling():
        return ProbeDotsFunction.apply(products, *draw)
    if inside_transform() or has_tangent(products):
        return _dots_of_drawn_probes(products, draw)
    return custom_ops.probe_dots(products, *draw)


class ProbeDotsFunction(torch.autograd.Function):
    """:func:`probe_dots`."""

    @staticmethod
    def forward(products: Tensor, *draw: Any) -> Tensor:
        return custom_ops.probe_dots(products, *draw)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        products, *draw = inputs
        ctx.draw = Draw(*draw)
        ctx.shape, ctx.dtype = products.shape, products.dtype

    @staticmethod
    @maps_batched_grads
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return ScaledProbesFunction.apply(grad, list(ctx.shape), ctx.dtype, *ctx.draw), *_NO_GRADIENTS

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return ProbeDotsFunction.apply(tangent, *ctx.draw)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], products: Tensor, *draw: Any) -> tuple[Tensor, int]:
        return torch.vmap(lambda x: _dots_of_drawn_probes(x, Draw(*draw)), in_dims[0])(products), 0


class ScaledProbesFunction(torch.autograd.Function):
    """Return ``c_kb ε_kbj`` in dtype, ``[K, B, ...]`` = shape, with probes drawn inside the kernel. c: ``[K, B]``."""

    @staticmethod
    def forward(c: Tensor, shape: list[int], dtype: torch.dtype, *draw: Any) -> Tensor:
        return custom_ops.scaled_probes(c, shape, dtype, *draw)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        c, ctx.shape, ctx.dtype, *draw = inputs
        ctx.draw = Draw(*draw)
        ctx.c_dtype = c.dtype

    @staticmethod
    @maps_batched_grads
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return ProbeDotsFunction.apply(grad, *ctx.draw).to(ctx.c_dtype), None, None, *_NO_GRADIENTS

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return ScaledProbesFunction.apply(tangent, ctx.shape, ctx.dtype, *ctx.draw)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], c: Tensor, shape: Any, dtype: Any, *draw: Any) -> tuple[Tensor, int]:
        probes = Draw(*draw).materialize(shape, c.device, "triton").float()
        return torch.vmap(lambda c: reference.scaled(probes, c).to(dtype), in_dims[0])(c), 0


custom_ops.probe_dots.register_autograd(ProbeDotsFunction.backward, setup_context=ProbeDotsFunction.setup_context)


def _dots_of_drawn_probes(products: Tensor, draw: Draw) -> Tensor:
    return reference.dots(products, draw.materialize(products.shape, products.device, "triton"))
