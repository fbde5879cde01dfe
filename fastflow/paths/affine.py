"""Probability paths: six functions of time that say where a sample is and how fast it moves.

``x_t = alpha x1 + beta x0 + gamma z`` and ``u_t = d_alpha x1 + d_beta x0 + d_gamma z``, with t = 0 at the source x0,
t = 1 at the data x1, and z an extra standard normal. Every op sees a path only through these coefficients.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from .._checks import check_like, check_time, readable
from .._torch import unwrapped
from ..kernels.flow_step.reference import Coefficient
from ..ops.flow_step.api import Noise, interpolate, target_velocity
from ..ops.random import GaussianNoise, uniform

_SINGULAR_MARGIN = 1e-5


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
        """``(alpha, beta, gamma)``; a plain float stands for a coefficient that does not depend on t."""

    @abstractmethod
    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        """``(d_alpha, d_beta, d_gamma)``, the derivatives of :meth:`position` in t."""

    def coefficients(self, t: Tensor) -> Coefficients:
        """All six coefficients at times t.

        Args:
            t: any shape, a floating point dtype, inside ``domain``.

        Returns:
            Six tensors of the shape of t, differentiable in t, at least in fp32.

        Raises:
            TypeError: t is not a floating point tensor.
            ValueError: a value of t lies outside the domain.
        """
        t = check_time(t, self)
        return Coefficients(*(_full(c, t) for c in (*self.position(t), *self.velocity(t))))

    def sample(self, x0: Noise, x1: Tensor, t: Tensor, *, noise: Noise | None = None) -> PathSample:
        """``(x_t, u_t)`` for a batch: :func:`fastflow.interpolate` and :func:`fastflow.target_velocity` together."""
        return PathSample(
            interpolate(x0, x1, t, path=self, noise=noise),
            target_velocity(x0, x1, t, path=self, noise=noise),
        )


@dataclass(frozen=True)
class CondOT(Path):
    """The linear path ``x_t = t x1 + (1 - t) x0`` of rectified flow [Liu et al., 2209.03003; Lipman et al., 2210.02747,
    eq. 22 with sigma_min = 0]."""

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, 1 - t, 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, -1.0, 0.0


@dataclass(frozen=True)
class SigmaMin(Path):
    """The linear path that ends at width sigma_min: ``beta = 1 - (1 - sigma_min) t`` [Lipman et al., 2210.02747,
    eq. 20]."""

    sigma_min: float

    def __post_init__(self) -> None:
        _require(0.0 <= self.sigma_min < 1.0, "sigma_min", "0 <= sigma_min < 1", self.sigma_min)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, 1 - (1 - self.sigma_min) * t, 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, self.sigma_min - 1.0, 0.0


@dataclass(frozen=True)
class Cosine(Path):
    """Trigonometric, variance-preserving path ``alpha = sin(pi t / 2)``, ``beta = cos(pi t / 2)``
    [Albergo & Vanden-Eijnden, 2209.15571; GVP in Ma et al., 2401.08740]."""

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        angle = 0.5 * math.pi * t
        return torch.sin(angle), torch.cos(angle), 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        angle = 0.5 * math.pi * t
        return 0.5 * math.pi * torch.cos(angle), -0.5 * math.pi * torch.sin(angle), 0.0


@dataclass(frozen=True)
class Polynomial(Path):
    """``alpha = t^n``, ``beta = 1 - t^n``, n >= 1 [polynomial convex scheduler, Lipman et al., 2412.06264]."""

    n: float

    def __post_init__(self) -> None:
        _require(self.n >= 1, "n", "n >= 1 (below, the velocity is infinite at t = 0)", self.n)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        power = t**self.n
        return power, 1 - power, 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        rate = self.n * t ** (self.n - 1)
        return rate, -rate, 0.0


@dataclass(frozen=True)
class VP(Path):
    """The variance-preserving diffusion path with a flow-matching target: ``alpha = exp(-T/2)``,
    ``beta = sqrt(1 - exp(-T))``, ``T = s^2 (beta_max - beta_min) / 2 + s beta_min``, ``s = 1 - t``
    [Song et al., 2011.13456, eq. 33; Lipman et al., 2210.02747, eq. 19]. d_beta is infinite at t = 1."""

    domain: ClassVar[tuple[float, float]] = (0.0, 1.0 - _SINGULAR_MARGIN)
    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
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
    """``alpha = t``, ``beta = sqrt(1 - t^2)`` [Lipman et al., 2412.06264]. d_beta is infinite at t = 1."""

    domain: ClassVar[tuple[float, float]] = (0.0, 1.0 - _SINGULAR_MARGIN)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, torch.sqrt((1 - t) * (1 + t)), 0.0

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, -t / torch.sqrt((1 - t) * (1 + t)), 0.0


@dataclass(frozen=True)
class Independent(Path):
    """I-CFM: the linear path in a tube of constant width, ``gamma = sigma`` [Tong et al., 2302.00482, eq. 14-15].
    With samples paired by optimal transport it is OT-CFM."""

    sigma: float

    def __post_init__(self) -> None:
        _require(self.sigma >= 0.0, "sigma", "sigma >= 0", self.sigma)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, 1 - t, self.sigma

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, -1.0, 0.0


@dataclass(frozen=True)
class SchrodingerBridge(Path):
    """Brownian bridge ``gamma = sigma sqrt(t (1 - t))``; its coupling is entropic with epsilon = 2 sigma^2
    [SB-CFM in Tong et al., 2302.00482]. d_gamma is infinite at both ends."""

    domain: ClassVar[tuple[float, float]] = (_SINGULAR_MARGIN, 1.0 - _SINGULAR_MARGIN)
    sigma: float

    def __post_init__(self) -> None:
        _require(self.sigma >= 0.0, "sigma", "sigma >= 0", self.sigma)

    def position(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return t, 1 - t, self.sigma * torch.sqrt(t * (1 - t))

    def velocity(self, t: Tensor) -> tuple[Coefficient, Coefficient, Coefficient]:
        return 1.0, -1.0, 0.5 * self.sigma * (1 - 2 * t) / torch.sqrt(t * (1 - t))


TimeDistribution = Literal["uniform", "logit_normal"]


def sample_times(
    path: Path,
    num: int,
    *,
    seed: int,
    offset: int = 0,
    distribution: TimeDistribution = "uniform",
    mean: float = 0.0,
    std: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Training times, always inside the path's domain ``[a, b]``: ``t = a + (b - a) u``.

    Args:
        path: whose domain.
        num: how many.
        seed, offset: the stream of the draw, see :class:`fastflow.GaussianNoise`.
        distribution: of u: ``"uniform"`` on (0, 1), or ``"logit_normal"``: sigmoid(mean + std n), n ~ N(0, 1)
            [Esser et al., 2403.03206, eq. 19].
        mean, std: of the logit, for ``"logit_normal"``.
        device: where the result lives.

    Returns:
        fp32 ``[num]``.
    """
    if distribution == "uniform":
        u = uniform((num,), seed, offset, device=device)
    elif distribution == "logit_normal":
        u = torch.sigmoid(mean + std * GaussianNoise(seed, offset).materialize((num,), device=device))
    else:
        names = ", ".join(map(repr, get_args(TimeDistribution)))
        raise ValueError(f"distribution must be one of {names}, got {distribution!r}")
    low, high = path.domain
    return u if (low, high) == (0.0, 1.0) else (low + (high - low) * u).clamp(low, high)


Quantity = Literal["velocity", "x1", "noise", "score"]


def convert(value: Tensor, xt: Tensor, t: Tensor, *, path: Path, source: Quantity, target: Quantity) -> Tensor:
    """One parametrisation of a path's marginal from another, for ``x_t = alpha x1 + beta x0`` with x0 ~ N(0, I).

    With ``d = d_alpha beta - alpha d_beta``: ``x1 = (beta v - d_beta x_t) / d``, ``x0 = (d_alpha x_t - alpha v) / d``,
    ``score = -x0 / beta``, ``v = d_alpha x1 + d_beta x0``. It maps conditional values (x1 and x0 themselves) and
    marginal ones (posterior means, the marginal velocity and score) alike, because it is linear.

    Args:
        value: the known quantity, ``[B, ...]``.
        xt: the point, the shape of value.
        t: ``[B]`` or scalar.
        path: any path with gamma = 0.
        source, target: ``"velocity"``, ``"x1"`` (the denoised data), ``"noise"`` (x0) or ``"score"``.

    Returns:
        The wanted quantity, the shape of value. Differentiable in value, xt and t.

    Raises:
        ValueError: an unknown quantity; a path with gamma; shapes that differ; a CPU t at which the conversion divides
            by zero (beta = 0 from x1 and to score, alpha = 0 from noise and score).
    """
    for name, kind in (("source", source), ("target", target)):
        if kind not in get_args(Quantity):
            names = ", ".join(map(repr, get_args(Quantity)))
            raise ValueError(f"{name} must be one of {names}, got {kind!r}")
    check_like("value", value, "xt", xt)
    t = check_time(t, path, xt)
    alpha, beta, gamma = path.position(t)
    d_alpha, d_beta, _ = path.velocity(t)
    if isinstance(gamma, Tensor) or gamma != 0.0:
        raise ValueError(f"path must have gamma = 0 to convert between parametrisations, got {path}")
    if source == target:
        return value
    rows = (-1, *(1,) * (xt.ndim - 1))
    a, b, da, db = (_full(c, t).to(xt.dtype).view(rows) for c in (alpha, beta, d_alpha, d_beta))

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


def _full(c: Coefficient, t: Tensor) -> Tensor:
    return c if isinstance(c, Tensor) else torch.full_like(t, c)


def _require(condition: bool, name: str, wanted: str, got: object) -> None:
    if not condition:
        raise ValueError(f"{name} must satisfy {wanted}, got {got}")
