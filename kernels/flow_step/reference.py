"""The flow step in PyTorch: the definition, and the implementation used where Triton cannot run."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._dtypes import at_least_float32

Coefficient = Tensor | float


def affine(xs: Sequence[Tensor | None], coefficients: Sequence[Coefficient], in_place: bool = False) -> Tensor:
    """Return ``c1 x1 + c0 x0 + cz z``, at least in fp32.

    xs: x1, then x0 and z, ``[B, ...]`` or None; coefficients: each a float or ``[B]``. in_place: add the later terms to
    the memory of the first, which vmap does not allow.
    """
    (x1, *rest), (c1, *others) = xs, coefficients
    assert x1 is not None
    total = _term(c1, x1)
    for c, x in zip(others, rest, strict=True):
        if x is not None:
            total = _accumulate(total, c, x, in_place and total is not x1)
    return total


def squared_error(pred: Tensor, target: Tensor, reduction: str = "none", one_pass: bool = False) -> Tensor:
    """Return ``sum_j (pred - target)_bj^2`` ``[B]``, or the sum or the mean of all squares, at least in fp32.

    one_pass: compute the squares in one pass over memory, by an op that PyTorch cannot map well.
    """
    dtype = at_least_float32(pred, target)
    pred, target = pred.to(dtype), target.to(dtype)
    # reduced here, because PyTorch has no tangent of the gradient of mse_loss(reduction="mean") if an input has none
    error = F.mse_loss(pred, target, reduction="none") if one_pass else (pred - target).square()
    if reduction == "none":
        return row_sum(error)
    return error.mean() if reduction == "mean" else error.sum()


def row_sum(x: Tensor) -> Tensor:
    """Sum each sample: ``[B, ...]`` to ``[B]``."""
    return x.reshape(x.shape[0], math.prod(x.shape[1:])).sum(1)


def _term(c: Coefficient, x: Tensor) -> Tensor:
    x = x.to(at_least_float32(x))
    if isinstance(c, float):
        return x if c == 1.0 else c * x
    return rows(c, x) * x


def _accumulate(total: Tensor, c: Coefficient, x: Tensor, in_place: bool) -> Tensor:
    x = x.to(at_least_float32(x))
    in_place = in_place and total.dtype == x.dtype
    if isinstance(c, float):
        return total.add_(x, alpha=c) if in_place else torch.add(total, x, alpha=c)
    c = rows(c, x)
    return total.addcmul_(c, x) if in_place else torch.addcmul(total, c, x)


def rows(c: Tensor, x: Tensor) -> Tensor:
    """Cast c, ``[B]`` or a scalar, to x's dtype and shape it to multiply x ``[B, ...]``."""
    return c.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
