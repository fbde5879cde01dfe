"""Guided velocities for sampling."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._checks import check_batched, check_number, check_returned, check_value
from .._dtypes import at_least_float32
from ..kernels.flow_step.reference import rows
from ..ops.divergence.estimators import estimate
from ..ops.divergence.jacobian import gradient
from ..ops.divergence.options import DivergenceOptions, collect, shows_options
from .ode import Velocity, evaluate


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
        ``velocity(x, t)`` with x ``[B, ...]`` and t ``[B]``, in the dtype of the model's; the two are combined at least
        in fp32.

    Raises:
        TypeError: y is not a tensor, or scale not a number.
        ValueError: the interval is empty, there is no null class, or scale is not finite. When called, the velocity
            raises as :func:`fastflow.sample_ode` if there is not a label for each sample or the model returns another
            shape than x's.

    Source: Ho and Salimans (2207.12598), equation 6; the interval is that of Kynkäänniemi et al. (2404.07724).
    """
    low, high = interval
    if not low < high:
        raise ValueError(f"interval must be (low, high) with low < high, got {interval}")
    if not isinstance(y, Tensor):
        raise TypeError(f"y must be a tensor, got {type(y).__name__}")
    if check_number("scale", scale) == 1.0:
        return lambda x, t: check_value("model", model(x, t, _check_labels(y, x)), x)
    if null_class is None:
        raise ValueError(f"guidance with scale {scale} needs a model with a null class (class_dropout > 0)")
    labels = torch.cat((y, torch.full_like(y, null_class)))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        _check_labels(y, x)
        doubled = torch.cat((x, x))
        value = check_value("model", model(doubled, torch.cat((t, t)), labels), doubled)
        conditional, unconditional = value.to(at_least_float32(value)).chunk(2)
        w = rows(torch.where((t >= low) & (t <= high), scale, 1.0), conditional)
        return torch.lerp(unconditional, conditional, w).to(value.dtype)

    return velocity


def _check_labels(y: Tensor, x: Tensor) -> Tensor:
    if y.shape[:1] != x.shape[:1]:
        raise ValueError(f"y must hold a label for each of the {x.shape[0]} samples, got shape {tuple(y.shape)}")
    return y


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
        options, keywords: how to estimate the divergence, as for :func:`fastflow.divergence`: num_probes, or probes of
            your own, ``[K, *x.shape]``.

    Returns:
        g, shape and dtype of x. It is the gradient of the estimate, so it is unbiased if the estimate is.

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`fastflow.divergence`; the velocity's value must carry a graph in
            forward mode too.
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
        ``velocity(x, t)`` with x ``[B, ...]`` and t ``[B]``, in the dtype of v; the sum is taken at least in fp32.

    Raises:
        TypeError, ValueError: weight is neither a finite number nor a function, or returns another shape than t's.
    """
    options = collect("mode_seeking", options, keywords)
    if not callable(weight) and check_number("weight", weight) == 0.0:
        return velocity

    def guided(x: Tensor, t: Tensor) -> Tensor:
        value, g = _value_and_guidance(velocity, x, t, options)
        if callable(weight):
            factor = check_returned("weight", weight(t), t.shape, "the shape of t", t.device)
        else:
            factor = weight * (1 - t).square()
        wide = value.to(at_least_float32(value))
        return (wide + rows(factor, wide) * g).to(value.dtype)

    return guided


def _value_and_guidance(velocity: Velocity, x: Tensor, t: Tensor, options: DivergenceOptions) -> tuple[Tensor, Tensor]:
    check_batched("x", x)

    def negative_divergence(x: Tensor) -> tuple[Tensor, Tensor]:
        value, samples = estimate(lambda x: evaluate(velocity, x, t), x, options)
        return -samples.mean(0).sum(), value

    g, value = gradient(negative_divergence, x)
    return value, g
