"""Two-dimensional distributions, each a pure function of (seed, offset)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops.random import GaussianNoise, uniform
from .purposes import Purpose


def draw(name: str, num: int, seed: int, step: int = 0) -> Tensor:
    """Draw ``num`` points of the distribution ``name``, a key of ``POINT_SETS``; returns fp32 ``[num, 2]``."""
    u = uniform((num, 2), seed, Purpose.POINTS_UNIFORM.at(step))
    z = GaussianNoise(seed, Purpose.POINTS_NORMAL.at(step)).materialize((num, 2), backend="reference")
    return POINT_SETS[name](u[:, 0], u[:, 1], z)


def _eight_gaussians(u: Tensor, _: Tensor, z: Tensor) -> Tensor:
    return 5.0 * _circle(math.tau * (8.0 * u).floor() / 8.0) + z


def _moons(u: Tensor, choice: Tensor, z: Tensor) -> Tensor:
    arc = _circle(math.pi * u)
    lower = (choice < 0.5)[:, None]
    moons = torch.where(lower, torch.tensor([1.0, 0.5]) - arc, arc)
    return 2.0 * (moons + 0.05 * z) - 1.0


def _s_curve(u: Tensor, _: Tensor, z: Tensor) -> Tensor:
    t = 3.0 * math.pi * (u - 0.5)
    curve = torch.stack((t.sin(), t.sign() * (t.cos() - 1.0)), dim=1)
    return 1.5 * (curve + 0.05 * z)


def _checkerboard(u: Tensor, v: Tensor, _: Tensor) -> Tensor:
    # 4 x 4 squares of side 2; those with even i + j are filled: i is the column, j = i mod 2 + {0, 2}
    x, y = 4.0 * u, 2.0 * v
    j = 2.0 * y.floor() + x.floor() % 2.0
    return 2.0 * torch.stack((x, j + y % 1.0), dim=1) - 4.0


def _circles(u: Tensor, choice: Tensor, z: Tensor) -> Tensor:
    radius = torch.where(choice < 0.5, 2.0, 4.0)[:, None]
    return radius * _circle(math.tau * u) + 0.2 * z


def _swiss_roll(u: Tensor, _: Tensor, z: Tensor) -> Tensor:
    t = 1.5 * math.pi * (1.0 + 2.0 * u)
    return 0.3 * (t[:, None] * _circle(t) + 0.5 * z)


def _circle(angle: Tensor) -> Tensor:
    return torch.stack((angle.cos(), angle.sin()), dim=1)


POINT_SETS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "moons": _moons,
    "eight_gaussians": _eight_gaussians,
    "s_curve": _s_curve,
    "checkerboard": _checkerboard,
    "circles": _circles,
    "swiss_roll": _swiss_roll,
}
