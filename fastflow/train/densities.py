"""The likelihood of a run's data under its model."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..ops.divergence import Method
from ..ops.random import uniform
from ..paths import Path
from ..sampling.likelihood import LikelihoodSolver, log_likelihood
from .data import PointData, load_data
from .errors import NonFiniteError
from .preflight import check_probes, check_samples
from .purposes import Purpose
from .runs import SAMPLES_TOGETHER, Run


class Densities(NamedTuple):
    """Log-densities in nats, in bits per dimension, and the standard error of the nats over probes, each ``[N]``."""

    nats: Tensor
    bits_per_dim: Tensor
    stderr: Tensor | None


@torch.no_grad()
def data_densities(
    run: Run,
    num: int,
    *,
    method: Method = "hutchinson",
    num_probes: int = 1,
    num_steps: int = 100,
    solver: LikelihoodSolver = "heun",
    levels: int = 256,
    seed: int = 0,
) -> Densities:
    """Compute the density of at most ``num`` random samples of a run's data under its model, given their labels.

    Images are dequantised: uniform noise on (−½, ½) is added to their values 0 ... levels − 1, and volume is measured
    in levels. Points and latents keep their own units.

    Raises:
        NonFiniteError: a density is infinite or NaN.
        ValueError: the data is not what the run was trained on, or the request does not fit into memory.
    """
    data = load_data(run.config.data, run.config.labels, run.config.image_size)
    if data.spec != run.spec:
        raise ValueError(f"{run.config.data} is not the data that the run was trained on")
    device = next(run.model.parameters()).device
    if isinstance(data, PointData):
        check_samples(num, run.spec, device)
    samples, _ = data.halves(num, seed)
    if not len(samples):
        raise ValueError(f"{run.config.data} holds one sample; the likelihood is that of half of the data")
    if method != "exact":
        check_probes(num_probes, len(samples), run.spec, device)
    x, y = samples.x, samples.y
    scale = run.spec.std
    if run.spec.kind == "images":
        scale *= levels - 1
        x = x + (uniform(x.shape, seed, Purpose.DEQUANTISATION.at(0)) - 0.5) / (levels - 1)
    x1 = run.spec.standardise(x)
    low, high = run.path.domain
    results = []
    for index in torch.arange(len(x1)).split(SAMPLES_TOGETHER):
        labels = None if y is None else y[index].to(device)

        def velocity(x: Tensor, t: Tensor, labels: Tensor | None = labels) -> Tensor:
            return run.model(x, t, labels)

        result = log_likelihood(
            velocity,
            x1[index].to(device),
            num_steps=num_steps,
            solver=solver,
            method=method,
            num_probes=num_probes,
            seed=seed,
            offset=Purpose.PROBES.at(int(index[0])),
            log_p0=lambda x: _source_log_prob(run.path, x),
            t0=low,
            t1=high,
        )
        results.append((result.log_prob, result.bits_per_dim(scale), result.stderr))
    nats, bits, errors = zip(*results, strict=True)
    if bad := sum(int(x.isfinite().logical_not().sum()) for x in nats):
        raise NonFiniteError(f"{bad} of {len(x1)} log-densities are not finite: try more steps")
    volume = x1[0].numel() * math.log(scale)
    return Densities(
        torch.cat(nats).cpu() - volume, torch.cat(bits).cpu(), None if errors[0] is None else torch.cat(errors).cpu()
    )


def _source_log_prob(path: Path, x: Tensor) -> Tensor:
    """Return ``log N(x; 0, beta² + gamma²)`` at the start of the path, taking alpha as 0 there."""
    start = path.coefficients(torch.tensor([path.domain[0]], device=x.device))
    variance = start.beta.square() + start.gamma.square()
    size = x.shape[1:].numel()
    return -0.5 * (x.reshape(-1, size).square().sum(1) / variance + size * torch.log(2.0 * math.pi * variance))
