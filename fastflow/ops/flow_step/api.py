"""The conditional flow-matching step: interpolation, velocity target and loss, fused over any probability path."""

import functools
from typing import Literal

import torch
from torch import Tensor

from ..._checks import check_choice, check_floating, check_like
from .._tangents import complete_tangents
from .problem import AffinePath as AffinePath
from .problem import Combination, check_operands, combination
from .problem import Noise as Noise
from .select import select

Reduction = Literal["mean", "sum", "none"]


def interpolate(
    x0: Noise,
    x1: Tensor,
    t: Tensor | float,
    *,
    path: AffinePath,
    noise: Noise | None = None,
    dtype: torch.dtype | None = None,
    backend: str = "auto",
) -> Tensor:
    """Return the point on the path, ``x_t = alpha(t) x1 + beta(t) x0 + gamma(t) z``.

    Takes one pass over memory: sums in fp32 (fp64 for fp64 inputs), rounds once and never stores drawn noise.

    Args:
        x0: the source, a tensor of the shape of x1 or :class:`~fastflow.GaussianNoise`.
        x1: the data, ``[B, ...]``, floating point, any strides.
        t: ``[B]`` or a scalar, inside ``path.domain``.
        path: a probability path, e.g. ``fastflow.paths.CondOT()``.
        noise: z, like x0. Needed where gamma is not zero, unused elsewhere.
        dtype: dtype of the result, by default the one that x0, x1 and z promote to.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        x_t, contiguous, in the shape of x1. Differentiable in x0, x1, noise and t, in every mode.

    Raises:
        TypeError: an argument is not a floating point tensor.
        ValueError: shapes or devices differ, t is outside the domain, noise is missing, or the backend cannot run.

    Source: Lipman et al., 2210.02747, eq. 11; with z, Albergo et al., 2303.08797, eq. 2.1.
    """
    t = check_operands(x0, x1, t, path, noise)
    return _evaluate(combination(x0, x1, noise, path.position(t), path), dtype, backend)


def target_velocity(
    x0: Noise, x1: Tensor, t: Tensor | float, *, path: AffinePath, noise: Noise | None = None
) -> Tensor:
    """Return the conditional velocity, ``u_t = d_alpha(t) x1 + d_beta(t) x0 + d_gamma(t) z``.

    Training does not need it, because :func:`flow_matching_loss` rebuilds it in registers. Arguments, result and errors
    are as in :func:`interpolate`; z is needed where d_gamma is not zero. Source: Lipman et al., 2210.02747, eq. 13.
    """
    t = check_operands(x0, x1, t, path, noise)
    return _evaluate(combination(x0, x1, noise, path.velocity(t), path), None, "auto")


def flow_matching_loss(
    pred: Tensor,
    x0: Noise,
    x1: Tensor,
    t: Tensor | float,
    *,
    path: AffinePath,
    noise: Noise | None = None,
    weight: Tensor | None = None,
    reduction: Reduction = "mean",
    backend: str = "auto",
) -> Tensor:
    """Return the conditional flow-matching loss, ``w ||pred - u_t||^2`` with ``u_t`` as in :func:`target_velocity`.

    The target, drawn noise and the residual exist in registers only, in the forward and again in the backward.

    Args:
        pred: the predicted velocity at x_t, in the shape of x1; its dtype may differ from x1's.
        x0, x1, t, path, noise, backend: as for :func:`interpolate`, the same objects that made x_t.
        weight: w, ``[B]``, floating point.
        reduction: ``"mean"`` over all elements, ``sum_b w_b sum_j e_bj / (B M)`` (weights are not normalised);
            ``"sum"``; or ``"none"``, the weighted mean over each sample's M elements, ``[B]``.

    Returns:
        The loss in fp32 (fp64 if an input is fp64): a scalar, or ``[B]``. An empty batch gives zero. Differentiable in
        pred, x0, x1, noise, t and weight, in every mode and order.

    Raises:
        TypeError, ValueError: as :func:`interpolate`, or the reduction is unknown.

    Source: Lipman et al., 2210.02747, eq. 14.
    """
    check_choice("reduction", reduction, Reduction)
    t = check_operands(x0, x1, t, path, noise)
    check_like("pred", check_floating("pred", pred), "x1", x1)
    if weight is not None:
        _check_weight(weight, x1)
    target = combination(x0, x1, noise, path.velocity(t), path)
    implementation = select(target, backend, pred)
    if weight is None and reduction != "none" and implementation.total_squared_error is not None:
        return implementation.total_squared_error(pred, target, reduction)
    loss = implementation.squared_error(pred, target)
    if weight is not None:
        loss, weight = complete_tangents(loss, weight)
        loss = loss * weight
    if reduction == "none":
        return loss * (1.0 / max(1, x1[:1].numel()))
    # scaled before the sum, because PyTorch gives a scalar times a number a float64 tangent
    return loss.sum() if reduction == "sum" else (loss * (1.0 / max(1, x1.numel()))).sum()


def _evaluate(terms: Combination, dtype: torch.dtype | None, backend: str) -> Tensor:
    if dtype is None:
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in terms.tensors))
        return select(terms, backend).affine(terms, dtype)
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating point type, got {dtype}")
    return select(terms, backend, terms.x1.new_empty(0, dtype=dtype)).affine(terms, dtype)


def _check_weight(weight: Tensor, x1: Tensor) -> None:
    check_floating("weight", weight)
    if weight.shape != x1.shape[:1]:
        raise ValueError(f"weight must be [B] with B = {x1.shape[0]}, got shape {tuple(weight.shape)}")
    if weight.device != x1.device:
        raise ValueError(f"weight must be on the device of x1, {x1.device}, got {weight.device}")
