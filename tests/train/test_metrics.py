"""The metrics, against closed forms and against themselves."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from fastflow.train.classifier import principal_components, train_classifier
from fastflow.train.data import ArrayData, DataSpec, Samples, load_data
from fastflow.train.errors import NonFiniteError
from fastflow.train.metrics import evaluate, frechet_distance, wasserstein2

needs_scipy = pytest.mark.skipif(importlib.util.find_spec("scipy") is None, reason="scipy is not installed")


def with_moments(mean: Tensor, covariance: Tensor) -> Tensor:
    """Features whose sample mean and (unbiased) sample covariance are exactly these."""
    torch.manual_seed(0)
    z = torch.randn(200, len(mean), dtype=torch.float64)
    z = z - z.mean(dim=0)
    z = z @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(z.mT))).mT
    return mean + z @ torch.linalg.cholesky(covariance).mT


def test_frechet_distance_of_commuting_gaussians() -> None:
    """Diagonal covariances: |m - n|² + Σ (√a - √b)²."""
    m, n = torch.tensor([[1.0, 2.0, 3.0], [0.0, 2.0, 5.0]], dtype=torch.float64)
    a, b = torch.tensor([[1.0, 4.0, 9.0], [4.0, 4.0, 0.25]], dtype=torch.float64)
    expected = (m - n).square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    distance = frechet_distance(with_moments(m, a.diag()), with_moments(n, b.diag()))
    assert distance == pytest.approx(expected.item(), rel=1e-10)


def test_frechet_distance_of_general_gaussians() -> None:
    """Against the eigenvalues of the unsymmetric product, another way to the same trace."""
    torch.manual_seed(1)
    a, b = (x @ x.mT + torch.eye(4, dtype=torch.float64) for x in torch.randn(2, 4, 4, dtype=torch.float64))
    zero = torch.zeros(4, dtype=torch.float64)
    root_trace = torch.linalg.eigvals(a @ b).real.sqrt().sum()
    expected = a.trace() + b.trace() - 2 * root_trace
    distance = frechet_distance(with_moments(zero, a), with_moments(zero, b))
    assert distance == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero_even_where_it_is_flat() -> None:
    x = torch.randn(50, 3, dtype=torch.float64)
    flat = torch.cat((x, x[:, :1]), dim=1)
    assert frechet_distance(flat, flat) == pytest.approx(0.0, abs=1e-6)


@needs_scipy
def test_wasserstein_distance_of_a_translation_is_its_length() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3, dtype=torch.float64)
    shuffled = x[torch.randperm(64)]
    assert wasserstein2(x, shuffled) == 0.0
    assert wasserstein2(x, shuffled + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(5.0, rel=1e-12)


@needs_scipy
def test_wasserstein_distance_on_a_line_matches_sorted_points() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(2, 50, 1, dtype=torch.float64)
    expected = (a.sort(dim=0).values - b.sort(dim=0).values).square().mean().sqrt()
    assert wasserstein2(a, b) == pytest.approx(expected.item(), rel=1e-12)


def test_wasserstein_distance_needs_equal_sets() -> None:
    with pytest.raises(ValueError, match=r"\(3, 2\) and \(4, 2\)"):
        wasserstein2(torch.zeros(3, 2), torch.zeros(4, 2))


def stripes(num: int) -> Samples:
    """Two classes of 8 × 8 images: stripes across and stripes down, with noise."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(num) % 2
    across = (torch.arange(8) % 2).float().expand(8, 8)
    x = torch.where(y[:, None, None].bool(), across, across.T)[:, None]
    return Samples((x + 0.1 * torch.randn(num, 1, 8, 8, generator=generator)).clamp(0.0, 1.0), y)


def test_classifier_learns_and_is_a_function_of_the_seed() -> None:
    samples = stripes(64)
    torch.manual_seed(1)
    one = train_classifier(samples, 2, seed=0)
    torch.manual_seed(2)
    other = train_classifier(samples, 2, seed=0)
    assert one.accuracy(samples) == 1.0
    assert one.accuracy(Samples(samples.x, 1 - samples.y)) == 0.0
    assert torch.equal(one.features(samples.x), other.features(samples.x))
    assert not torch.equal(one.features(samples.x), train_classifier(samples, 2, seed=1).features(samples.x))


def test_principal_components_keep_distances() -> None:
    torch.manual_seed(0)
    x = torch.randn(30, 2, 3, 3, dtype=torch.float64)
    features = principal_components(x)(x)
    assert torch.allclose(torch.pdist(features), torch.pdist(x.flatten(1)), rtol=1e-12)


def stripe_data() -> ArrayData:
    return ArrayData(DataSpec("images", (1, 8, 8), ("across", "down"), 0.5, 0.5), stripes(128))


@pytest.mark.parametrize("labelled", [True, False])
def test_perfect_samples_reach_the_floor_and_noise_the_ceiling(labelled: bool) -> None:
    data = stripe_data()
    if not labelled:
        spec = DataSpec("images", (1, 8, 8), (), 0.5, 0.5)
        data = ArrayData(spec, Samples(data.samples.x))

    def fresh(num: int, y: Tensor | None) -> Tensor:
        assert (y is not None) == labelled
        if y is None:
            return data.samples.x
        samples = stripes(2 * num)
        return torch.stack([samples.x[2 * i + int(label)] for i, label in enumerate(y)])

    def noise(num: int) -> Tensor:
        return torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(3))

    metrics = evaluate(data, fresh, noise, None, seed=0)
    assert metrics["frechet_distance"] <= metrics["frechet_floor"]
    assert metrics["frechet_floor"] < 0.2 * metrics["frechet_noise"]
    assert ("class_accuracy" in metrics) == labelled
    if labelled:
        assert metrics["class_accuracy"] == metrics["class_accuracy_real"] == 1.0
    assert metrics == evaluate(data, fresh, noise, None, seed=0)


def test_wrong_class_is_seen() -> None:
    data = stripe_data()
    metrics = evaluate(
        data,
        lambda num, y: stripes(num).x[(1 - y).argsort(stable=True).argsort()],
        lambda num: torch.rand(num, 1, 8, 8),
        64,
        seed=0,
    )
    assert metrics["class_accuracy"] < 1.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_have_no_distance(value: float) -> None:
    good, bad = torch.randn(8, 3), torch.full((8, 3), value)
    for pair in ((good, bad), (bad, good)):
        with pytest.raises(NonFiniteError, match="not finite"):
            frechet_distance(*pair)


@needs_scipy
def test_the_floor_is_that_of_several_pairs() -> None:
    one, other = load_data("moons").halves(4 * 50, seed=0)
    metrics = evaluate(load_data("moons"), lambda num, y: one.x[:num], lambda num: torch.randn(num, 2), 50, seed=0)
    pairs = zip(one.x.split(50), other.x.split(50))
    assert metrics["w2"] == 0.0
    assert metrics["w2_floor"] == pytest.approx(sum(wasserstein2(a, b) for a, b in pairs) / 4)


@needs_scipy
@pytest.mark.parametrize("num", [None, 3, 5])
def test_few_points_give_as_many_pairs_as_they_can(num: int | None, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(11, 2)))
    data = load_data(str(tmp_path / "x.npy"))
    metrics = evaluate(data, lambda num, y: torch.zeros(num, 2), lambda num: torch.randn(num, 2), num, seed=0)
    assert all(0.0 < value < 10.0 for value in metrics.values())


@needs_scipy
def test_points_are_compared_with_their_own_scatter() -> None:
    data = load_data("eight_gaussians")
    third, _ = data.halves(200, seed=9)
    metrics = evaluate(data, lambda num, y: third.x[:num], lambda num: torch.randn(num, 2), 200, seed=0)
    assert metrics["w2"] == pytest.approx(metrics["w2_floor"], rel=0.5)
    assert metrics["w2_noise"] > 3.0
    assert math.isfinite(metrics["w2_floor"])
