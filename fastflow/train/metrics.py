"""Distances of samples from the data, with those of held-out data (the floor) and of noise (the ceiling)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .classifier import Features, principal_components, train_classifier
from .data import ArrayData, Dataset, Samples
from .errors import NonFiniteError
from .extras import extra
from .memory import check_memory

_MAX_IMAGES = 10_000
_NUM_POINTS = 1_000
_FLOOR_PAIRS = 4  # one pair's distance varies by a factor of two

Generate = Callable[[int, Tensor | None], Tensor]  # (num, labels) -> samples in the data's own units


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the squared Fréchet distance of Gaussians fitted to two sets of features ``[N, F]``, in float64.

    ``|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^{1/2})``. With Inception features it is the FID (Heusel et al.,
    1706.08500, equation 6); with other features, as here, it cannot be compared with published FIDs.

    Raises:
        NonFiniteError: a feature is infinite or NaN.
    """
    if not (a.isfinite().all() and b.isfinite().all()):
        raise NonFiniteError("the features of the samples are not finite: use less guidance, or set eval_samples to 0")
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.cov(f.mT).reshape(f.shape[1], f.shape[1]) for f in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0.0).sqrt().sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return max(0.0, float(means + cov_a.trace() + cov_b.trace() - 2.0 * cross))


def wasserstein2(a: Tensor, b: Tensor) -> float:
    """Return the exact 2-Wasserstein distance of two sets of points ``[N, D]``, ``sqrt(min_π mean_i |a_i - b_π(i)|²)``.

    Raises:
        ValueError: the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"both point sets must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    cost = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    rows, columns = extra("scipy.optimize").linear_sum_assignment(cost)
    return math.sqrt(cost[rows, columns].mean())


def check_evaluation(data: Dataset, num: int | None, name: str) -> None:
    """Raise a ValueError if :func:`evaluate` cannot measure this many samples (0 for none) of the data of this name."""
    if num == 0:
        return
    real = len(data.samples) if isinstance(data, ArrayData) else None
    needed = 2 if data.spec.kind == "points" else 4  # two in each half of the images, for a covariance
    if real is not None and real < needed:
        raise ValueError(f"the final metrics need {needed} samples, and {name} holds {real}: set eval_samples to 0")
    size = math.prod(data.spec.shape)
    if data.spec.kind == "points":
        num = num or _NUM_POINTS
        num = num if real is None else min(num, real // 2)
        check_memory(24 * num**2 + 32 * num * size, f"eval_samples {num}")  # distances in float64, squared, assigned
        return
    assert real is not None
    if num == 1:
        raise ValueError("eval_samples must be 0 or at least 2 for images and latents, got 1")
    num = num or min(real, _MAX_IMAGES)
    check_memory(16 * num * size, f"eval_samples {num}")
    if not data.spec.num_classes:
        half = min(real // 2, _MAX_IMAGES)
        check_memory(24 * half * size, f"the principal components of {half} samples for eval_samples {num}")


def evaluate(
    data: Dataset, generate: Generate, noise: Callable[[int], Tensor], num: int | None, seed: int
) -> dict[str, float]:
    """Compute the final metrics of a run, a function of the data, the model and the seed.

    Images and latents:

    * ``frechet_distance``: between samples and all real data, in the features of a classifier trained on a random half
      of the real data (principal components if there are no labels). As is customary, the real data is the training
      data, so memorising is not penalised.
    * ``frechet_floor``: between the two halves of the real data.
    * ``frechet_noise``: between noise and all real data.
    * ``class_accuracy``: fraction of samples that the classifier assigns to the requested class.
    * ``class_accuracy_real``: the same for the real images that it was not trained on.

    Points: ``w2`` and ``w2_noise``, the exact Wasserstein distances from a real draw to samples and to noise, and
    ``w2_floor``, the mean distance of a few disjoint pairs of real draws.

    Args:
        data: the real data.
        generate: ``(num, labels) -> samples``.
        noise: ``num -> samples`` of an untrained model, for the ceiling.
        num: number of samples; None for as many as there are real ones.
        seed: seed of the split, the classifier and the draws.
    """
    if data.spec.kind == "points":
        return _evaluate_points(data, generate, noise, num or _NUM_POINTS, seed)
    return _evaluate_images(data, generate, noise, num, seed)


def _evaluate_points(
    data: Dataset, generate: Generate, noise: Callable[[int], Tensor], num: int, seed: int
) -> dict[str, float]:
    one, other = data.halves(_FLOOR_PAIRS * num, seed)
    num = min(num, len(one), len(other))
    real = one.x[:num]
    pairs = [(a, b) for a, b in zip(one.x.split(num), other.x.split(num)) if len(a) == len(b) == num]
    return {
        "w2": wasserstein2(generate(num, None), real),
        "w2_floor": sum(wasserstein2(a, b) for a, b in pairs) / len(pairs),
        "w2_noise": wasserstein2(noise(num), real),
    }


def _evaluate_images(
    data: Dataset, generate: Generate, noise: Callable[[int], Tensor], num: int | None, seed: int
) -> dict[str, float]:
    def scaled(x: Tensor) -> Tensor:  # a classifier cannot learn from latents in just any units
        return data.spec.standardise(x) if data.spec.kind == "latents" and data.spec.num_classes else x

    train, test = (Samples(scaled(half.x), half.y) for half in data.halves(_MAX_IMAGES, seed))
    classifier = None
    features: Features
    if data.spec.num_classes:
        classifier = train_classifier(train, data.spec.num_classes, seed)
        features = classifier.features
    else:
        features = principal_components(train.x)
    real = torch.cat((train.x, test.x))
    num = num or min(len(real), _MAX_IMAGES)
    y = None if train.y is None or test.y is None else torch.cat((train.y, test.y)).repeat(-(-num // len(real)))[:num]
    x = scaled(generate(num, y))
    metrics = {
        "frechet_distance": frechet_distance(features(x), features(real)),
        "frechet_floor": frechet_distance(features(train.x), features(test.x)),
        "frechet_noise": frechet_distance(features(scaled(noise(num))), features(real)),
    }
    if classifier is not None:
        metrics["class_accuracy"] = classifier.accuracy(Samples(x, y))
        metrics["class_accuracy_real"] = classifier.accuracy(test)
    return metrics
