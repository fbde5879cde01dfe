"""The times at which a path is trained."""

from typing import Literal

import torch
from torch import Tensor

from .._checks import check_choice
from ..kernels.noise.domains import Domain
from ..ops.random import check_stream, normals, uniform
from .affine import Path

TimeDistribution = Literal["uniform", "logit_normal"]


def sample_times(
    path: Path,
    num: int,
    *,
    seed: int,
    offset: int = 0,
    first_sample: int = 0,
    distribution: TimeDistribution = "uniform",
    mean: float = 0.0,
    std: float = 1.0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw training times ``t = a + (b - a) u``, always inside the path's domain ``[a, b]``.

    Args:
        path: gives the domain.
        num: number of times.
        seed, offset, first_sample: which times to draw, as for :class:`fastflow.GaussianNoise`. Noise and times of the
            same arguments are independent.
        distribution: that of u: ``"uniform"`` on (0, 1), or ``"logit_normal"``, ``u = sigmoid(mean + std n)`` with
            n ~ N(0, 1) [Esser et al., 2403.03206, eq. 19].
        mean, std: of the logit, for ``"logit_normal"``.
        device: device of the result.

    Returns:
        fp32 ``[num]``. The ops also take them rounded to another dtype, even where that rounds beyond the domain.

    Raises:
        TypeError: seed, offset or first_sample is not an int.
        ValueError: an unknown distribution; seed, offset or first_sample is out of range.
    """
    check_choice("distribution", distribution, TimeDistribution)
    check_stream(seed, offset, first_sample)
    if distribution == "uniform":
        u = uniform((num,), seed, offset, first_sample, Domain.UNIFORM_TIMES, device=device)
    else:
        u = torch.sigmoid(mean + std * normals((num,), seed, offset, first_sample, Domain.NORMAL_TIMES, device=device))
    low, high = path.domain
    return u if (low, high) == (0.0, 1.0) else (low + (high - low) * u).clamp(low, high)
