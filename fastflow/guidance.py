"""Velocities steered at sampling time."""

from collections.abc import Callable

import torch
from torch import Tensor


def classifier_free_guidance(
    model: Callable[[Tensor, Tensor, Tensor], Tensor],
    y: Tensor,
    *,
    scale: float,
    null_class: int | None,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Callable[[Tensor, Tensor], Tensor]:
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
