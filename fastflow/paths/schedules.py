"""The eight probability paths."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .._checks import check_number
from ..kernels.flow_step.reference import Coefficient
from .affine import Path

_SINGULAR_MARGIN = 1e-5


@dataclass(frozen=True)
class CondOT(Path):
    """The linear path ``x_t = t x1 + (1 - t) x0`` of rectified flow.

    Source: Liu et al., 2209.03003; Lipman et al., 2210.02747, eq. 22 with sigma_min = 0.
    """

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, 1 - t, 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, -1.0, 0.0


@dataclass(frozen=True)
class SigmaMin(Path):
    """The linear path that ends at width sigma_min: ``beta = 1 - (1 - sigma_min) t``.

    Source: Lipman et al., 2210.02747, eq. 20.
    """

    sigma_min: float

    def __post_init__(self) -> None:
        _store_number(self, "sigma_min")
        _require(0.0 <= self.sigma_min < 1.0, "sigma_min", "0 <= sigma_min < 1", self.sigma_min)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, (1 - t) + self.sigma_min * t, 0.0  # beta as a sum: it keeps its digits where it is small

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, self.sigma_min - 1.0, 0.0


@dataclass(frozen=True)
class Cosine(Path):
    """The trigonometric, variance-preserving path ``alpha = sin(pi t / 2)``, ``beta = cos(pi t / 2)``.

    Source: Albergo & Vanden-Eijnden, 2209.15571; GVP in Ma et al., 2401.08740.
    """

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return self._sine(t), self._sine(1 - t), 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 0.5 * math.pi * self._sine(1 - t), -0.5 * math.pi * self._sine(t), 0.0

    @staticmethod
    def _sine(t: Tensor) -> Tensor:
        return torch.sin(0.5 * math.pi * t)  # beta is that of 1 - t: a cosine would not be 0 at t = 1


@dataclass(frozen=True)
class Polynomial(Path):
    """The polynomial path ``alpha = t^n``, ``beta = 1 - t^n``, n >= 1.

    Source: the polynomial convex scheduler of Lipman et al., 2412.06264.
    """

    n: float

    def __post_init__(self) -> None:
        _store_number(self, "n")
        _require(self.n >= 1, "n", "n >= 1 (for smaller n the velocity is infinite at t = 0)", self.n)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        power = t**self.n
        late = t > 0.5  # there 1 - t^n would lose digits
        beta = torch.where(late, 0.0 - torch.expm1(self.n * torch.where(late, t, 1.0).log()), 1 - power)
        return power, beta, 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        rate = self.n * t ** (self.n - 1)
        return rate, -rate, 0.0


@dataclass(frozen=True)
class VP(Path):
    """The variance-preserving diffusion path with a flow-matching target; d_beta is infinite at t = 1.

    ``alpha = exp(-T/2)``, ``beta = sqrt(1 - exp(-T))`` with ``T = s^2 (beta_max - beta_min) / 2 + s beta_min`` and
    ``s = 1 - t``.

    Source: Song et al., 2011.13456, eq. 33; Lipman et al., 2210.02747, eq. 19.
    """

    domain: ClassVar[tuple[float, float]] = (0.0, 1.0 - _SINGULAR_MARGIN)
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _store_number(self, "beta_min")
        _store_number(self, "beta_max")
        _require(
            0.0 < self.beta_min <= self.beta_max,
            "(beta_min, beta_max)",
            "0 < beta_min <= beta_max",
            (self.beta_min, self.beta_max),
        )

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        T = self._integral(1 - t)
        return torch.exp(-0.5 * T), torch.sqrt(-torch.expm1(-T)), 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        s = 1 - t
        T = self._integral(s)
        rate = self.beta_min + s * (self.beta_max - self.beta_min)  # -dT/dt
        return 0.5 * rate * torch.exp(-0.5 * T), -0.5 * rate * torch.exp(-T) / torch.sqrt(-torch.expm1(-T)), 0.0

    def _integral(self, s: Tensor) -> Tensor:
        return 0.5 * s * s * (self.beta_max - self.beta_min) + s * self.beta_min


@dataclass(frozen=True)
class LinearVP(Path):
    """The variance-preserving path ``alpha = t``, ``beta = sqrt(1 - t^2)``; d_beta is infinite at t = 1.

    Source: Lipman et al., 2412.06264.
    """

    domain: ClassVar[tuple[float, float]] = (0.0, 1.0 - _SINGULAR_MARGIN)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, torch.sqrt((1 - t) * (1 + t)), 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, -t / torch.sqrt((1 - t) * (1 + t)), 0.0


@dataclass(frozen=True)
class Tube(Path):
    """The linear path in a tube of constant width, ``gamma = sigma``.

    With independent x0 and x1 it is I-CFM, with pairs from optimal transport OT-CFM.

    Source: Tong et al., 2302.00482, eq. 14-15.
    """

    sigma: float

    def __post_init__(self) -> None:
        _store_number(self, "sigma")
        _require(self.sigma >= 0.0, "sigma", "sigma >= 0", self.sigma)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, 1 - t, self.sigma

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, -1.0, 0.0


@dataclass(frozen=True)
class SchrodingerBridge(Path):
    """The Brownian bridge ``gamma = sigma sqrt(t (1 - t))``; d_gamma is infinite at both ends.

    With pairs from entropic optimal transport, epsilon = 2 sigma^2, it is SB-CFM.

    Source: Tong et al., 2302.00482.
    """

    domain: ClassVar[tuple[float, float]] = (_SINGULAR_MARGIN, 1.0 - _SINGULAR_MARGIN)
    sigma: float

    def __post_init__(self) -> None:
        _store_number(self, "sigma")
        _require(self.sigma >= 0.0, "sigma", "sigma >= 0", self.sigma)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, 1 - t, self.sigma * torch.sqrt(t * (1 - t))

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, -1.0, 0.5 * self.sigma * (1 - 2 * t) / torch.sqrt(t * (1 - t))


def _store_number(path: Path, name: str) -> None:
    """Store a parameter of a frozen path as a float; raise unless it is a finite number."""
    object.__setattr__(path, name, check_number(name, getattr(path, name)))


def _require(condition: bool, name: str, wanted: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name} must satisfy {wanted}, got {got}")


Independent = Tube  # deprecated: the name of a coupling, not of a path; to be removed in version 0.2
