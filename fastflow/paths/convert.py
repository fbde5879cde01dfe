"""Conversions between the parametrisations of a path's marginal: velocity, data, noise and score."""

from typing import Literal

from torch import Tensor

from .._checks import check_choice, check_like, check_time, readable
from .._torch import unwrapped
from .affine import Path, as_tensor

Quantity = Literal["velocity", "x1", "noise", "score"]


def convert(value: Tensor, xt: Tensor, t: Tensor, *, path: Path, source: Quantity, target: Quantity) -> Tensor:
    """Convert between parametrisations of a path's marginal, for ``x_t = alpha x1 + beta x0`` with x0 ~ N(0, I).

    With ``d = d_alpha beta - alpha d_beta``: ``x1 = (beta v - d_beta x_t) / d``, ``x0 = (d_alpha x_t - alpha v) / d``,
    ``score = -x0 / beta``, ``v = d_alpha x1 + d_beta x0``. These are linear, so they convert conditional values (x1 and
    x0 themselves) and marginal ones (posterior means, the marginal velocity and score) alike.

    Args:
        value: the known quantity, ``[B, ...]``.
        xt: the point, the shape of value.
        t: ``[B]`` or scalar.
        path: any path with gamma = 0.
        source, target: ``"velocity"``, ``"x1"`` (the denoised data), ``"noise"`` (x0) or ``"score"``.

    Returns:
        The target quantity, the shape of value. Differentiable in value, xt and t.

    Raises:
        ValueError: an unknown quantity; a path with gamma; shapes that differ; a CPU t at which the conversion divides
            by zero (beta = 0 from x1 and to score, alpha = 0 from noise and score).
    """
    check_choice("source", source, Quantity)
    check_choice("target", target, Quantity)
    check_like("value", value, "xt", xt)
    t = check_time(t, path, xt)
    alpha, beta, gamma = path.position(t)
    d_alpha, d_beta, _ = path.velocity(t)
    if isinstance(gamma, Tensor) or gamma != 0.0:
        raise ValueError(f"path must have gamma = 0 to convert between parametrisations, got {path}")
    if source == target:
        return value
    rows = (-1, *(1,) * (xt.ndim - 1))
    a, b, da, db = (as_tensor(c, t).to(xt.dtype).view(rows) for c in (alpha, beta, d_alpha, d_beta))

    def nonzero(divisor: Tensor, name: str) -> Tensor:
        if readable(divisor) and bool((unwrapped(divisor) == 0).any()):
            raise ValueError(f"t must stay where {name} is not 0 to convert {source} to {target} under {path}")
        return divisor

    def determinant() -> Tensor:
        return nonzero(da * b - a * db, "d_alpha beta - alpha d_beta")

    def noise() -> Tensor:
        if source == "velocity":
            return (da * xt - a * value) / determinant()
        if source == "x1":
            return (xt - a * value) / nonzero(b, "beta")
        return value if source == "noise" else -b * value

    def data() -> Tensor:
        if source == "velocity":
            return (b * value - db * xt) / determinant()
        return value if source == "x1" else (xt - b * noise()) / nonzero(a, "alpha")

    if target == "x1":
        return data()
    if target == "velocity":
        return da * data() + db * noise()
    return noise() if target == "noise" else -noise() / nonzero(b, "beta")
