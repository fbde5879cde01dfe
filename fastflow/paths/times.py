"""The times at which a path is trained."""

from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice
from ..ops.random import GaussianNoise, uniform
from .affine import Path

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
    """Draw training times ``t = a + (b - a) u``, always inside the path's domain ``[a, b]``.

    Args:
        path: gives the domain.
        num: number of times.
        seed, offset: stream of the draw, see :class:`fastflow.GaussianNoise`.
        distribution: that of u: ``"uniform"`` on (0, 1), or ``"logit_normal"``, ``u = sigmoid(mean + std n)`` with
            n ~ N(0, 1) [Esser et al., 2403.03206, eq. 19].
        mean, std: of the logit, for ``"logit_normal"``.
        device: device of the result.

    Returns:
        fp32 ``[num]``.

    Raises:
        ValueError: an unknown distribution.
    """
    check_choice("distribution", distribution, TimeDistribution)
    if distribution == "uniform":
        u = uniform((num,), seed, offset, device=device)
    else:
        u = torch.sigmoid(mean + std * GaussianNoise(seed, offset).materialize((num,), device=device))
    low, high = path.domain
    return u if (low, high) == (0.0, 1.0) else (low + (high - low) * u).clamp(low, high)
