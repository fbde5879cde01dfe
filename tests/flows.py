"""Flows whose velocity, divergence and density are known in closed form."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from fastflow.paths import VP, CondOT, Cosine, LinearVP, Path, Polynomial, SchrodingerBridge, SigmaMin, Tube

PATHS = [
    CondOT(),
    SigmaMin(0.1),
    Cosine(),
    Polynomial(2),
    VP(),
    LinearVP(),
    Tube(0.1),
    SchrodingerBridge(0.5),
]


@dataclass(frozen=True)
class GaussianMixtureFlow:
    """The flow from N(0, I) to a mixture of Gaussians with diagonal covariances along an affine path.

    At time t the marginal is a mixture with means ``alpha m_i`` and variances ``V_i = alpha² s_i² + beta² + gamma²``.
    The velocity averages those of the components, ``u_i = d_alpha m_i + V_i' / (2 V_i) (x − alpha m_i)``, weighted by
    their shares r_i of the density at x.

    Args:
        path: any affine path, with independent source, data and z.
        weights: ``[I]``, summing to 1.
        means: m, ``[I, D]``.
        stds: s, ``[I, D]``.
    """

    path: Path
    weights: Tensor
    means: Tensor
    stds: Tensor

    @classmethod
    def example(cls, path: Path, dim: int = 2, dtype: torch.dtype = torch.float64) -> "GaussianMixtureFlow":
        """Build a flow to three unequal components in any dimension."""
        index = torch.arange(3 * dim, dtype=dtype).view(3, dim)
        weights = torch.tensor([0.5, 0.3, 0.2], dtype=dtype)
        return cls(path, weights, 1.5 * torch.sin(1.0 + 2.0 * index), 0.6 + 0.25 * torch.cos(3.0 * index))

    def source_log_prob(self, x: Tensor) -> Tensor:
        """Return ``log p`` at the start of the path's domain, ``[B]``."""
        return self.log_prob(x, torch.full(x.shape[:1], self.path.domain[0], dtype=x.dtype))

    def log_prob(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ``log p_t(x)``, ``[B]``."""
        return self._joint(x, t)[0].logsumexp(1)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the marginal velocity, ``[B, D]``."""
        joint, u, _, _ = self._joint(x, t)
        return (joint.softmax(1)[..., None] * u).sum(1)

    def divergence(self, x: Tensor, t: Tensor) -> Tensor:
        """Return ``Σ_i r_i div u_i + Σ_i ∇r_i · u_i``, ``[B]``, with ``∇r_i = r_i (∇log N_i − Σ_j r_j ∇log N_j)``."""
        joint, u, score, rate = self._joint(x, t)
        r = joint.softmax(1)[..., None]  # [B, I, 1]
        return (r * (rate + (score - (r * score).sum(1, keepdim=True)) * u)).sum((1, 2))

    def sample(self, num: int, seed: int = 0) -> Tensor:
        """Draw points of the marginal at the end of the path's domain, ``[num, D]``."""
        generator = torch.Generator().manual_seed(seed)
        i = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        _, mean, variance, _ = self._marginal(torch.tensor([self.path.domain[1]], dtype=self.means.dtype))
        z = torch.randn(num, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return mean[0, i] + variance[0, i].sqrt() * z

    def _marginal(self, t: Tensor) -> tuple[Tensor, ...]:
        """Return d_alpha ``[B, 1, 1]``, and means, variances and derivatives of the variances ``[B, I, D]``."""
        a, b, c, da, db, dc = (x[:, None, None] for x in self.path.coefficients(t))
        variance = a**2 * self.stds**2 + b**2 + c**2
        return da, a * self.means, variance, 2 * (a * da * self.stds**2 + b * db + c * dc)

    def _joint(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return ``log w_i N_i(x)`` ``[B, I]``, and u_i, ∇log N_i and the diagonal of ∂u_i/∂x, each ``[B, I, D]``."""
        d_alpha, mean, variance, d_variance = self._marginal(t)
        offset, rate = x[:, None] - mean, d_variance / (2 * variance)
        log_normal = -0.5 * (offset**2 / variance + variance.log() + math.log(2 * math.pi)).sum(2)
        return self.weights.log() + log_normal, d_alpha * self.means + rate * offset, -offset / variance, rate
