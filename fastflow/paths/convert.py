"""Conversions between the parametrisations of a path's marginal: velocity, data, noise and score."""

from typing import Literal

import torch
from torch import Tensor

from .._checks import check_batched, check_choice, check_floating, check_like, check_recording, check_time, readable
from .._dtypes import at_least_float32
from .._torch import unwrapped
from ..kernels.flow_step.reference import rows
from .affine import Path, as_tensor

Quantity = Literal["velocity", "x1", "noise", "score"]


def convert(value: Tensor, xt: Tensor, t: Tensor, *, path: Path, source: Quantity, target: Quantity) -> Tensor:
    """Convert between parametrisations of a path's marginal, for ``x_t = alpha x1 + beta x0`` with x0 ~ N(0, I).

    With ``d = d_alpha beta - alpha d_beta``: ``x1 = (beta v - d_beta x_t) / d``, ``x0 = (d_alpha x_t - alpha v) / d``,
    ``score = -x0 / beta``, ``v = d_alpha x1 + d_beta x0``. These are linear, so they convert conditional values (x1 and
    x0 themselves) and marginal ones (posterior means, the marginal velocity and score) alike.

    Coefficients and sums are in fp32 at least, and the result is rounded once. On a GPU, where reading t would
    synchronise, a conversion that divides by zero gives inf or NaN in place of an error, unless FASTFLOW_DEBUG=1.

    Args:
        value: the known quantity, ``[B, ...]``, floating point.
        xt: the point, the shape of value.
        t: ``[B]`` or scalar.
        path: any path with gamma = 0.
        source, target: ``"velocity"``, ``"x1"`` (the denoised data), ``"noise"`` (x0) or ``"score"``.

    Returns:
        The target quantity, the shape of value, in the dtype that value and xt promote to. Differentiable in value, xt
        and t.

    Raises:
        TypeError: value, xt or t is not a floating point tensor.
        ValueError: an unknown quantity; a path with gamma; shapes that differ; a CPU t at which the conversion divides
            by zero (beta = 0 from x1 and to score, alpha = 0 from noise and score) or a coefficient is infinite.
    """
    check_recording()
    check_choice("source", source, Quantity)
    check_choice("target", target, Quantity)
    check_like("value", check_floating("value", value), "xt", check_batched("xt", xt))
    t = check_time(t, path, xt)
    alpha, beta, gamma = path.position(t)
    d_alpha, d_beta, _ = path.velocity(t)
    if isinstance(gamma, Tensor) or gamma != 0.0:
        raise ValueError(f"path must have gamma = 0 to convert between parametrisations, got {path}")
    if source == target:
        return value
    dtype, result = at_least_float32(value, xt), torch.promote_types(value.dtype, xt.dtype)
    value, xt = value.to(dtype), xt.to(dtype)
    a, b, da, db = (rows(as_tensor(c, t), xt) for c in (alpha, beta, d_alpha, d_beta))

    def require(holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise ValueError(f"t must stay where {name} is {wanted} to convert {source} to {target} under {path}")

    def finite(c: Tensor, name: str) -> Tensor:
        require(not readable(c) or bool(unwrapped(c).isfinite().all()), name, "finite")
        return c

    def nonzero(c: Tensor, name: str) -> Tensor:
        require(not readable(c) or bool((unwrapped(c) != 0).all()), name, "not 0")
        return c

    def determinant() -> Tensor:
        name = "d_alpha beta - alpha d_beta"
        return nonzero(finite(da * b - a * db, name), name)

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

    def rate() -> Tensor:
        return finite(da, "d_alpha") * data() + finite(db, "d_beta") * noise()

    targets = {"x1": data, "velocity": rate, "noise": noise, "score": lambda: -noise() / nonzero(b, "beta")}
    return targets[target]().to(result)
