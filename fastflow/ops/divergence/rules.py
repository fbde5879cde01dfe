"""Derivative rules of the probe kernels.

With the probes ε fixed, ``dots: p ↦ Σ_j ε_kbj p_kbj`` is linear and ``scaled: c ↦ c_kb ε_kbj`` is its adjoint, so each
is the other's backward, to any order, and each is its own tangent map.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._torch import inside_transform
from ...kernels.divergence import reference
from .._tangents import has_tangent
from . import custom_ops as library


class Draw(NamedTuple):
    """Probes ``first ...`` of the stream ``(seed, offset)``, rounded to dtype."""

    seed: int
    offset: int
    first: int
    distribution: str
    dtype: torch.dtype

    def materialize(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """The probes, ``[K, B, ...]`` = shape."""
        return library.probes(list(shape), *self, device)


def probe_dots(products: Tensor, draw: Draw) -> Tensor:
    """``Σ_j ε_kbj products_kbj``, fp32 ``[K, B]``, by the reduction kernel. products: ``[K, B, ...]``."""
    if not torch.compiler.is_compiling():
        return ProbeDotsFunction.apply(products, *draw)
    if inside_transform() or has_tangent(products):
        return _dots(products, *draw)
    return library.probe_dots(products, *draw)


class ProbeDotsFunction(torch.autograd.Function):
    """:func:`probe_dots`."""

    @staticmethod
    def forward(products: Tensor, *draw: Any) -> Tensor:
        return library.probe_dots(products, *draw)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        products, *ctx.draw = inputs
        ctx.shape, ctx.dtype = products.shape, products.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return ScaledProbesFunction.apply(grad, list(ctx.shape), ctx.dtype, *ctx.draw), *(None for _ in ctx.draw)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return ProbeDotsFunction.apply(tangent, *ctx.draw)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], products: Tensor, *draw: Any) -> tuple[Tensor, int]:
        return torch.vmap(lambda x: _dots(x, *draw), in_dims[0])(products), 0


class ScaledProbesFunction(torch.autograd.Function):
    """``c_kb ε_kbj`` in dtype, ``[K, B, ...]`` = shape, by the probe kernel. c: ``[K, B]``."""

    @staticmethod
    def forward(c: Tensor, shape: list[int], dtype: torch.dtype, *draw: Any) -> Tensor:
        return library.scaled_probes(c, shape, dtype, *draw)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        c, ctx.shape, ctx.dtype, *ctx.draw = inputs
        ctx.c_dtype = c.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return ProbeDotsFunction.apply(grad, *ctx.draw).to(ctx.c_dtype), None, None, *(None for _ in ctx.draw)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return ScaledProbesFunction.apply(tangent, ctx.shape, ctx.dtype, *ctx.draw)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], c: Tensor, shape: Any, dtype: Any, *draw: Any) -> tuple[Tensor, int]:
        probes = Draw(*draw).materialize(shape, c.device).float()
        return torch.vmap(lambda c: reference.scaled(probes, c).to(dtype), in_dims[0])(c), 0


library.probe_dots.register_autograd(ProbeDotsFunction.backward, setup_context=ProbeDotsFunction.setup_context)


def _dots(products: Tensor, *draw: Any) -> Tensor:
    return reference.dots(products, Draw(*draw).materialize(products.shape, products.device))
