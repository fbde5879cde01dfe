"""The two-dimensional distributions: their moments and shapes, and that they are functions of (seed, step)."""

import math

import pytest
import torch

from fastflow.train.points import POINT_SETS, draw

NUM = 20_000


@pytest.mark.parametrize("name", POINT_SETS)
def test_draws_are_a_function_of_seed_and_step(name: str) -> None:
    one = draw(name, 100, seed=3, step=5)
    assert one.shape == (100, 2)
    assert one.dtype == torch.float32
    assert torch.equal(one, draw(name, 100, seed=3, step=5))
    assert torch.equal(one[:40], draw(name, 40, seed=3, step=5))
    assert not torch.equal(one, draw(name, 100, seed=3, step=6))
    assert not torch.equal(one, draw(name, 100, seed=4, step=5))


def test_eight_gaussians() -> None:
    x = draw("eight_gaussians", NUM, seed=0)
    angle = math.tau * torch.arange(8) / 8
    centres = 5.0 * torch.stack((angle.cos(), angle.sin()), dim=1)
    nearest = torch.cdist(x, centres).argmin(dim=1)
    share = torch.bincount(nearest, minlength=8) / NUM
    assert (share - 1 / 8).abs().max() < 4 * math.sqrt(1 / 8 * 7 / 8 / NUM)
    assert x.square().sum(dim=1).mean() == pytest.approx(25.0 + 2.0, rel=0.02)  # radius² + two unit variances


def test_moons() -> None:
    x = (draw("moons", NUM, seed=0) + 1.0) / 2.0
    upper = (x.norm(dim=1) - 1.0).abs()
    lower = ((x - torch.tensor([1.0, 0.5])).norm(dim=1) - 1.0).abs()
    nearest = torch.minimum(upper, lower)
    assert nearest.max() < 5 * 0.05
    assert (upper < lower).double().mean() == pytest.approx(0.5, abs=0.02)
    assert x.mean(dim=0).tolist() == pytest.approx([0.5, 0.25], abs=0.02)


def test_s_curve() -> None:
    x = draw("s_curve", NUM, seed=0) / 1.5
    # (sin t, sign t (cos t - 1)): x² + (|z| - 1)² = 1
    off = (x[:, 0].square() + (x[:, 1].abs() - 1.0).square()).sqrt() - 1.0
    assert off.abs().max() < 0.3
    assert off.std() == pytest.approx(0.05, rel=0.1)
    assert x[:, 1].abs().max() > 1.9


def test_checkerboard() -> None:
    x = draw("checkerboard", NUM, seed=0)
    assert x.abs().max() <= 4.0
    square = ((x + 4.0) / 2.0).floor().long().clamp(0, 3)
    assert (square.sum(dim=1) % 2 == 0).all()
    share = torch.bincount(4 * square[:, 0] + square[:, 1], minlength=16) / NUM
    assert sorted(share.tolist())[:8] == [0.0] * 8
    assert (share[share > 0] - 1 / 8).abs().max() < 0.01


def test_circles() -> None:
    radius = draw("circles", NUM, seed=0).norm(dim=1)
    inner = radius < 3.0
    assert inner.double().mean() == pytest.approx(0.5, abs=0.02)
    assert radius[inner].mean() == pytest.approx(2.0, abs=0.02)
    assert radius[~inner].mean() == pytest.approx(4.0, abs=0.02)


def test_swiss_roll() -> None:
    x = draw("swiss_roll", NUM, seed=0) / 0.3
    radius, angle = x.norm(dim=1), torch.atan2(x[:, 1], x[:, 0])
    turns = (radius - angle) / math.tau  # an Archimedean spiral: radius = angle + 2π k
    assert ((turns - turns.round()) * math.tau).std() == pytest.approx(0.5, rel=0.1)
    assert radius.min() > 1.5 * math.pi - 3.0
    assert radius.max() < 4.5 * math.pi + 3.0
