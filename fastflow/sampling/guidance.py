"""Guided velocities for sampling."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels.flow_step.reference import rows
from ..ops.divergence.estimators import estimate
from ..ops.divergence.jacobian import gradient
from ..ops.divergence.options import DivergenceOptions, collect, shows_options
from .ode import Velocity


def classifier_free_guidance(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    *,
    scale: float,
    null_class: int | None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """Return the velocity of a conditional model, extrapolated away from the unconditional one.

    ``v_w(x, t) = v(x, t, ∅) + w (v(x, t, y) − v(x, t, ∅))`` for t inside the interval, ``v(x, t, y)`` outside it. Both
    velocities come from one evaluation on a doubled batch; a scale of 1 evaluates the conditional one only.

    Args:
        model: ``model(x, t, y)``, trained with some of its labels replaced by null_class.
        y: labels, int64 ``[B]``.
        scale: w; 0 ignores the labels, 1 is the conditional model, larger values trade diversity for fidelity.
        null_class: the label ∅, ``DiT.null_class``; may be None if scale is 1.
        interval: times between which guidance is applied.

    Returns:
        ``velocity(x, t)`` with x ``[B, ...]`` and t ``[B]``.

    Raises:
        ValueError: the interval is empty, or there is no null class.

    Source: Ho and Salimans (2207.12598), equation 6; the interval is that of Kynkäänniemi et al. (2404.07724).
    """
    low, high = interval
    if not low < high:
        raise ValueError(f"interval must be (low, high) with low < high, got {interval}")
    if scale == 1.0:
        return lambda x, t: model(x, t, y)
    if null_class is None:
        raise ValueError(f"guidance with scale {scale} needs a model with a null class (class_dropout > 0)")
    labels = torch.cat((y, torch.full_like(y, null_class)))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = model(torch.cat((x, x)), torch.cat((t, t)), labels).chunk(2)
        w = rows(torch.where((t >= low) & (t <= high), scale, 1.0), x)
        return torch.lerp(unconditional, conditional, w)

    return velocity


@shows_options
def mode_guidance(
    velocity: Velocity, x: Tensor, t: Tensor, options: DivergenceOptions | None = None, **keywords: Any
) -> Tensor:
    """Return the direction in which a flow concentrates density, ``g(x, t) = ∇ₓ(−div v(x, t))``.

    Added to the velocity it draws samples toward the modes: :func:`fastflow.sampling.mode_seeking` does so, and
    ``fastflow.sample_ode(..., mode_guidance=w)``.

    Args:
        velocity: ``velocity(x, t)``, twice differentiable in x; the samples of a batch must not interact.
        x: ``[B, ...]``, floating point.
        t: ``[B]``.
        options, keywords: how to estimate the divergence, as for :func:`fastflow.divergence`.

    Returns:
        g, shape and dtype of x. It is the gradient of the estimate, so it is unbiased if the estimate is.

    Raises:
        TypeError, ValueError: as :func:`fastflow.divergence`.
    """
    return _value_and_guidance(velocity, x, t, collect("mode_guidance", options, keywords))[1]


@shows_options
def mode_seeking(
    velocity: Velocity,
    weight: float | Callable[[Tensor], Tensor],
    options: DivergenceOptions | None = None,
    **keywords: Any,
) -> Velocity:
    """Return the velocity ``v(x, t) + w (1 − t)² g(x, t)``, with v and :func:`mode_guidance` g from one evaluation.

    g has the unit of v over that of x². The factor (1 − t)², the variance of the noise still in x on a linear path,
    makes w dimensionless, best near 1. Without it, g grows without bound toward the data, and the last steps throw
    samples off their modes.

    Args:
        velocity: v, as for :func:`mode_guidance`.
        weight: w; 0 returns v itself. Or a function of t ``[B]`` that returns the whole factor of g, ``[B]``.
        options, keywords: as for :func:`mode_guidance`; the probes are the same at every time.

    Returns:
        ``velocity(x, t)`` with x ``[B, ...]`` and t ``[B]``.
    """
    options = collect("mode_seeking", options, keywords)
    if weight == 0.0:
        return velocity

    def guided(x: Tensor, t: Tensor) -> Tensor:
        value, g = _value_and_guidance(velocity, x, t, options)
        factor = weight(t) if callable(weight) else weight * (1 - t).square()
        return value + rows(factor, value) * g

    return guided


def _value_and_guidance(velocity: Velocity, x: Tensor, t: Tensor, options: DivergenceOptions) -> tuple[Tensor, Tensor]:
    def negative_divergence(x: Tensor) -> tuple[Tensor, Tensor]:
        value, samples = estimate(lambda x: velocity(x, t), x, options)
        return -samples.mean(0).sum(), value

    g, value = gradient(negative_divergence, x)
    return value, g
