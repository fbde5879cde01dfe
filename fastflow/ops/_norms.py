"""Norms written out, whose tangents can be differentiated.

PyTorch's fused layer, batch and instance norms compute the tangent from the saved mean and reciprocal deviation and
treat these as constants afterwards, so a gradient through the tangent is silently wrong (pytorch#196700).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .._dtypes import at_least_float32


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


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Divide by the root mean square over the last axis; compute at least in float32, return x's dtype."""
    wide = x.to(at_least_float32(x))
    return affine(wide * _reciprocal_rms(wide, (-1,), eps), weight, None).to(x.dtype)


def affine(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def _reciprocal_rms(x: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    return torch.rsqrt(x.square().mean(dim=dims, keepdim=True) + eps)
