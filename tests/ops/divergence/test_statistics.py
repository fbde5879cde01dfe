"""Mean and variance of the random methods."""

import math

import pytest
import torch

import fastflow as ff
from tests.ops.divergence.problems import matrix

SIZE = 12


def symmetric() -> torch.Tensor:
    A = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return A + A.T


@pytest.mark.parametrize("kwargs", [{}, {"distribution": "gaussian"}, {"method": "hutch++", "num_probes": 4}], ids=str)
def test_mean_over_1000_draws_is_the_divergence(kwargs):
    """Each of 200 seeds draws for five copies of every point."""
    A = matrix(4)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    with torch.no_grad():
        draws = torch.cat(
            [
                ff.divergence(lambda x: torch.sin(x @ A.T), x.repeat(5, 1), seed=seed, **kwargs).divergence.view(5, 8)
                for seed in range(200)
            ]
        )
    truth = torch.cos(x @ A.T) @ A.diagonal()
    z = (draws.mean(0) - truth) / (draws.std(0) / math.sqrt(1000))
    assert z.abs().max() < 4
    assert draws.std(0).max() > 0.01


def test_variance_falls_as_one_over_the_number_of_probes():
    A, x = symmetric(), torch.zeros(4096, SIZE, dtype=torch.float64)
    nums = [1, 2, 4, 8, 16, 32]
    spread = [ff.divergence(lambda x: x @ A, x, num_probes=k, seed=k).divergence.var() for k in nums]
    logs = torch.tensor([[math.log(k), v.log()] for k, v in zip(nums, spread)]).double()
    centred = logs - logs.mean(0)
    slope = (centred[:, 0] * centred[:, 1]).sum() / centred[:, 0].square().sum()
    assert slope.item() == pytest.approx(-1, abs=0.05)


def test_standard_error_is_the_spread_of_the_estimate():
    A, x = symmetric(), torch.zeros(4096, SIZE, dtype=torch.float64)
    r = ff.divergence(lambda x: x @ A, x, num_probes=8)
    assert r.stderr.square().mean().sqrt().item() == pytest.approx(r.divergence.std().item(), rel=0.04)


@pytest.mark.parametrize(
    ("distribution", "variance"),
    [
        ("rademacher", lambda A: 2 * (A.square().sum() - A.diagonal().square().sum())),
        ("gaussian", lambda A: 2 * A.square().sum()),
    ],
)
def test_variance_on_a_symmetric_matrix(distribution, variance):
    A, n = symmetric(), 20_000
    forms = ff.divergence(lambda x: x @ A, torch.zeros(n, SIZE).double(), distribution=distribution).divergence
    deviation = (forms - A.trace()).square()
    assert (deviation.mean() - variance(A)).abs() < 4 * deviation.std() / math.sqrt(n)


def test_hutch_plus_plus_beats_hutchinson_on_a_decaying_spectrum():
    Q = torch.linalg.qr(torch.randn(60, 60, generator=torch.Generator().manual_seed(3), dtype=torch.float64)).Q
    A = Q @ torch.diag(torch.arange(1.0, 61.0).double() ** -2) @ Q.T
    x = torch.zeros(256, 60, dtype=torch.float64)
    plain, better = (
        ff.divergence(lambda x: x @ A, x, method=m, num_probes=24).divergence.std() for m in ("hutchinson", "hutch++")
    )
    assert better < plain / 4
