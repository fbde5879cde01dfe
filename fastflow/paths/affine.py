"""Affine probability paths: six functions of time that give a sample's position and velocity.

``x_t = alpha x1 + beta x0 + gamma z`` and ``u_t = d_alpha x1 + d_beta x0 + d_gamma z``, with t = 0 at the source x0,
t = 1 at the data x1, and z an extra standard normal. The ops use nothing of a path but these coefficients.
"""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from .._checks import check_time
from ..kernels.flow_step.reference import Coefficient
from ..ops.flow_step.api import Noise, interpolate, target_velocity


class Coefficients(NamedTuple):
    """The six coefficients at time t, each of the shape of t."""

    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    d_alpha: Tensor
    d_beta: Tensor
    d_gamma: Tensor


class PathSample(NamedTuple):
    """A point on the path and the conditional velocity there, both of the shape of x1."""

    xt: Tensor
    velocity: Tensor


class Path(ABC):
    """A probability path. ``domain`` is the closed interval of t on which its velocity is finite."""

    domain: ClassVar[tuple[float, float]] = (0.0, 1.0)

    @abstractmethod
    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        """Return ``(alpha, beta, gamma)``; a float stands for a coefficient that does not depend on t."""

    @abstractmethod
    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        """Return ``(d_alpha, d_beta, d_gamma)``, the derivatives of :meth:`position` in t."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """Return all six coefficients at times t.

        Args:
            t: any shape, a floating point dtype, inside ``domain``.

        Returns:
            Six tensors of the shape of t, differentiable in t, at least in fp32.

        Raises:
            TypeError: t is not a floating point tensor.
            ValueError: a value of t lies outside the domain.
        """
        t = check_time(t, self)
        flat = t.reshape(-1)  # PyTorch gives a scalar times a number a float64 tangent
        return Coefficients(*(as_tensor(c, flat).view(t.shape) for c in (*self.position(flat), *self.velocity(flat))))

    def sample(self, x0: Noise, x1: Tensor, t: Tensor, *, noise: Noise | None = None) -> PathSample:
        """Return ``(x_t, u_t)`` for a batch: :func:`fastflow.interpolate` and :func:`fastflow.target_velocity`.

        Args:
            x0, x1, t, noise: as for :func:`fastflow.interpolate`.

        Raises:
            TypeError, ValueError: as :func:`fastflow.interpolate`.
        """
        return PathSample(
            interpolate(x0, x1, t, path=self, noise=noise),
            target_velocity(x0, x1, t, path=self, noise=noise),
        )


def as_tensor(c: Coefficient, t: Tensor) -> Tensor:
    return c if isinstance(c, Tensor) else torch.full_like(t, c)
