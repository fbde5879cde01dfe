"""The conditional flow-matching step: interpolation, velocity target and loss, fused over any probability path."""

import functools
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from ... import _backend
from ..._checks import check_floating, check_like, check_time
from ..._torch import inside_transform
from ...kernels.flow_step import reference
from ...kernels.flow_step.reference import Coefficient
from .._tangents import complete_tangents
from ..random import GaussianNoise
from . import rules

Noise = Tensor | GaussianNoise
Reduction = Literal["mean", "sum", "none"]
_REDUCTIONS = get_args(Reduction)


class AffinePath(Protocol):
    """What the ops ask of a path; :mod:`fastflow.paths` has the field's, and any object with these will do."""

    @property
    def domain(self) -> tuple[float, float]:
        """The closed interval of t on which the velocity is finite."""

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        """``(alpha, beta, gamma)`` at t ``[B]``, each ``[B]`` or a float constant."""

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        """Their derivatives in t."""


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
    """The point on the path, ``x_t = alpha(t) x1 + beta(t) x0 + gamma(t) z``.

    One pass over memory: the sum is taken in fp32 (fp64 for fp64 inputs) and rounded once; drawn noise is never stored.

    Args:
        x0: the source, a tensor of the shape of x1 or :class:`~fastflow.GaussianNoise`.
        x1: the data, ``[B, ...]``, floating point, any strides.
        t: ``[B]`` or a scalar, inside ``path.domain``.
        path: a probability path, e.g. ``fastflow.paths.CondOT()``.
        noise: z, like x0. Needed where gamma is not zero, not used elsewhere.
        dtype: of the result; by default what x0, x1 and z promote to.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        x_t, the shape of x1, contiguous. Differentiable in x0, x1, noise and t, in every mode.

    Raises:
        TypeError: an argument that is not a floating point tensor.
        ValueError: shapes or devices that differ, t outside the domain, noise missing, a backend that cannot serve.

    Source: Lipman et al., 2210.02747, eq. 11; with z, Albergo et al., 2303.08797, eq. 2.1.
    """
    t = _check_operands(x0, x1, t, path, noise)
    return _combine(x0, x1, noise, path.position(t), path, dtype, backend)


def target_velocity(
    x0: Noise, x1: Tensor, t: Tensor | float, *, path: AffinePath, noise: Noise | None = None
) -> Tensor:
    """The conditional velocity, ``u_t = d_alpha(t) x1 + d_beta(t) x0 + d_gamma(t) z``.

    Training does not need it: :func:`flow_matching_loss` rebuilds it in registers. Arguments, result and errors are
    those of :func:`interpolate`; z is needed where d_gamma is not zero. Source: Lipman et al., 2210.02747, eq. 13.
    """
    t = _check_operands(x0, x1, t, path, noise)
    return _combine(x0, x1, noise, path.velocity(t), path, None, "auto")


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
    """The conditional flow-matching loss, ``w ||pred - u_t||^2`` with ``u_t`` as in :func:`target_velocity`.

    The target, drawn noise and the residual live in registers only, in the forward and again in the backward.

    Args:
        pred: the predicted velocity at x_t, the shape of x1; its dtype may differ from x1's.
        x0, x1, t, path, noise, backend: as for :func:`interpolate`, the same objects that made x_t.
        weight: w, ``[B]``, floating point.
        reduction: ``"mean"`` over all elements, ``sum_b w_b sum_j e_bj / (B M)`` (weights are not normalised);
            ``"sum"``; or ``"none"``, the weighted mean over each sample's M elements, ``[B]``.

    Returns:
        The loss in fp32 (fp64 if an input is fp64): a scalar, or ``[B]``. An empty batch gives zero. Differentiable in
        pred, x0, x1, noise, t and weight, in every mode and order.

    Raises:
        TypeError, ValueError: as :func:`interpolate`; an unknown reduction.

    Source: Lipman et al., 2210.02747, eq. 14.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(map(repr, _REDUCTIONS))}, got {reduction!r}")
    t = _check_operands(x0, x1, t, path, noise)
    check_like("pred", check_floating("pred", pred), "x1", x1)
    if weight is not None:
        check_floating("weight", weight)
        if weight.shape != x1.shape[:1]:
            raise ValueError(f"weight must be [B] with B = {x1.shape[0]}, got shape {tuple(weight.shape)}")
        if weight.device != x1.device:
            raise ValueError(f"weight must be on the device of x1, {x1.device}, got {weight.device}")
    coefficients = path.velocity(t)
    z = _third_term(noise, coefficients[2], path)
    given = [x for x in (pred, x1, x0, z) if isinstance(x, Tensor)]
    if _backend.resolve(backend, "flow_step", *given) == "triton":
        loss = rules.squared_error(pred, x1, x0, z, coefficients)
    else:
        pred, *operands = complete_tangents(pred, x1, _tensor(x0, x1), _tensor(z, x1))
        target = reference.affine(operands, coefficients, _in_place())
        if weight is None and reduction != "none" and x1.numel():
            return reference.squared_error(pred, target, reduction)
        loss = reference.squared_error(pred, target, "none")
    if weight is not None:
        loss, weight = complete_tangents(loss, weight)
        loss = loss * weight
    if reduction == "none":
        return loss * (1.0 / max(1, x1[:1].numel()))
    return loss.sum() if reduction == "sum" else loss.sum() * (1.0 / max(1, x1.numel()))


def _check_operands(x0: object, x1: object, t: Tensor | float, path: AffinePath, noise: object) -> Tensor:
    """Raise on anything but one batch on one device; return t as ``[B]``."""
    x1 = check_floating("x1", x1)
    if x1.ndim == 0:
        raise ValueError("x1 must be [B, ...], got a scalar")
    for name, x in (("x0", x0), ("noise", noise)):
        if not isinstance(x, GaussianNoise) and not (name == "noise" and x is None):
            check_like(name, check_floating(name, x), "x1", x1)
    return check_time(t, path, x1)


def _combine(
    x0: Noise,
    x1: Tensor,
    noise: Noise | None,
    coefficients: tuple[Coefficient, Coefficient, Coefficient],
    path: AffinePath,
    dtype: torch.dtype | None,
    backend: str,
) -> Tensor:
    z = _third_term(noise, coefficients[2], path)
    given = [x for x in (x1, x0, z) if isinstance(x, Tensor)]
    if dtype is None:
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in given))
    elif not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating point type, got {dtype}")
    if _backend.resolve(backend, "flow_step", *given, x1.new_empty(0, dtype=dtype)) == "triton":
        return rules.affine(x1, x0, z, coefficients, dtype)
    operands = complete_tangents(x1, _tensor(x0, x1), _tensor(z, x1))
    return reference.affine(operands, coefficients, _in_place()).to(dtype)


def _in_place() -> bool:
    return not (torch.compiler.is_compiling() or inside_transform())


def _third_term(noise: Noise | None, cz: Coefficient, path: AffinePath) -> Noise | None:
    """z where its coefficient is not the constant zero."""
    if isinstance(cz, float) and cz == 0.0:
        return None
    if noise is None:
        raise ValueError(f"noise must be a tensor or GaussianNoise, because {path} has a third term; got None")
    return noise


def _tensor(x: Any, like: Tensor) -> Any:
    """Draw a GaussianNoise as a tensor; leave anything else as it is."""
    if isinstance(x, GaussianNoise):
        return x.materialize(like.shape, dtype=reference.accumulation_dtype(like), device=like.device)
    return x
