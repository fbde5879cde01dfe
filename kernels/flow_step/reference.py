"""The flow step in plain PyTorch: the truth for the kernels, and the implementation wherever they do not run."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Coefficient = Tensor | float


def affine(xs: Sequence[Tensor | None], coefficients: Sequence[Coefficient], in_place: bool = False) -> Tensor:
    """``c1 x1 + c0 x0 + cz z``, at least in fp32. xs: x1, then x0 and z ``[B, ...]`` or None; c: a float or ``[B]``.

    in_place: add the later terms into the memory of the first, which vmap does not allow.
    """
    (x1, *rest), (c1, *others) = xs, coefficients
    assert x1 is not None
    total = _term(c1, x1)
    for c, x in zip(others, rest, strict=True):
        if x is not None:
            total = _accumulate(total, c, x, in_place and total is not x1)
    return total


def squared_error(pred: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """``sum_j (pred - target)_bj^2``, ``[B]``, or the sum or the mean of all squares, at least in fp32. target: from
    :func:`affine`."""
    dtype = torch.promote_types(accumulation_dtype(pred), target.dtype)
    error = F.mse_loss(pred.to(dtype), target.to(dtype), reduction=reduction)
    return row_sum(error) if reduction == "none" else error


def row_sum(x: Tensor) -> Tensor:
    """``[B, ...]`` to ``[B]``."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).sum(1)


def accumulation_dtype(*tensors: Tensor) -> torch.dtype:
    """fp64 if any tensor is fp64, else fp32."""
    return torch.float64 if torch.float64 in [x.dtype for x in tensors] else torch.float32


def _term(c: Coefficient, x: Tensor) -> Tensor:
    x = _widened(x)
    if isinstance(c, float):
        return x if c == 1.0 else c * x
    return rows(c, x) * x


def _accumulate(total: Tensor, c: Coefficient, x: Tensor, in_place: bool) -> Tensor:
    """``total + c x``."""
    x = _widened(x)
    in_place = in_place and total.dtype == x.dtype
    if isinstance(c, float):
        return total.add_(x, alpha=c) if in_place else torch.add(total, x, alpha=c)
    c = rows(c, x)
    return total.addcmul_(c, x) if in_place else torch.addcmul(total, c, x)


def _widened(x: Tensor) -> Tensor:
    """x, at least in fp32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def rows(c: Tensor, x: Tensor) -> Tensor:
    """c, ``[B]`` or a scalar, in x's dtype and shaped to multiply x ``[B, ...]``."""
    return c.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
