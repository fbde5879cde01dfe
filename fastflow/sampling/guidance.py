"""Velocities steered at sampling time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..kernels.divergence.reference import Distribution
from ..ops.divergence.api import Estimator, Method
from ..ops.divergence.jacobian import Mode, gradient

Velocity = Callable[[Tensor, Tensor], Tensor]


def classifier_free_guidance(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    *,
    scale: float,
    null_class: int | None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Velocity:
    """The velocity of a conditional model pushed away from the unconditional one.

    ``v_w(x, t) = v(x, t, ∅) + w (v(x, t, y) − v(x, t, ∅))`` for t inside the interval, ``v(x, t, y)`` outside it. Both
    velocities come from one evaluation on a doubled batch; a scale of 1 evaluates the conditional one alone.

    Args:
        model: ``model(x, t, y)``, trained with part of its labels replaced by null_class.
        y: labels, int64 ``[B]``.
        scale: w; 0 ignores the labels, 1 is the plain conditional model, more trades variety for likeness.
        null_class: the label ∅, ``DiT.null_class``; may be None where scale is 1.
        interval: times between which guidance acts.

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
        w = torch.where((t >= low) & (t <= high), scale, 1.0).to(x.dtype).view(-1, *(x.ndim - 1) * (1,))
        return torch.lerp(unconditional, conditional, w)

    return velocity


def mode_guidance(
    velocity: Velocity,
    x: Tensor,
    t: Tensor,
    *,
    method: Method = "hutchinson",
    num_probes: int = 1,
    distribution: Distribution = "rademacher",
    mode: Mode = "auto",
    seed: int = 0,
    offset: int = 0,
    backend: str = "auto",
) -> Tensor:
    """The direction in which a flow concentrates density, ``g(x, t) = ∇ₓ(−div v(x, t))``.

    Added to the velocity it draws samples toward the modes: :func:`fastflow.guidance.mode_seeking` does so, and
    ``fastflow.sample_ode(..., mode_guidance=w)``.

    Args:
        velocity: ``velocity(x, t)``, twice differentiable in x; the samples of a batch must not interact.
        x: ``[B, ...]``, floating point.
        t: ``[B]``.
        method, num_probes, distribution, mode, seed, offset, backend: see :func:`fastflow.divergence`.

    Returns:
        g, shape and dtype of x: the gradient of the estimate, so unbiased where the estimate is.

    Raises:
        TypeError, ValueError: as :func:`fastflow.divergence`.
    """
    estimator = Estimator(method, num_probes, distribution, mode, seed, offset, backend=backend)
    return _value_and_guidance(velocity, x, t, estimator)[1]


def mode_seeking(velocity: Velocity, weight: float | Callable[[Tensor], Tensor], **options: Any) -> Velocity:
    """The velocity ``v(x, t) + w (1 − t)² g(x, t)``, with v and :func:`mode_guidance` g from one evaluation.

    g has the unit of v over that of x²: the factor (1 − t)², the variance of the noise still in x on a linear path,
    makes w a pure number, best near 1. Without it g, which grows without bound toward the data, throws samples off
    their modes in the end.

    Args:
        velocity: v, as for :func:`mode_guidance`.
        weight: w; 0 is v itself. Or a function of t ``[B]`` that gives the whole factor of g, ``[B]``.
        options: keywords of :func:`mode_guidance`; the probes are the same at every time.

    Returns:
        ``velocity(x, t)`` with x ``[B, ...]`` and t ``[B]``.
    """
    estimator = Estimator(**options)
    if weight == 0.0:
        return velocity

    def guided(x: Tensor, t: Tensor) -> Tensor:
        value, g = _value_and_guidance(velocity, x, t, estimator)
        factor = weight(t) if callable(weight) else weight * (1 - t).square()
        return value + factor.to(value.dtype).view(-1, *(x.ndim - 1) * (1,)) * g

    return guided


def _value_and_guidance(velocity: Velocity, x: Tensor, t: Tensor, estimator: Estimator) -> tuple[Tensor, Tensor]:
    def negative_divergence(x: Tensor) -> tuple[Tensor, Tensor]:
        value, samples = estimator(lambda x: velocity(x, t), x)
        return -samples.mean(0).sum(), value

    g, value = gradient(negative_divergence, x)
    return value, g
