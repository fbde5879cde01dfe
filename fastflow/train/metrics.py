"""How far samples are from the data, beside how far the data is from itself (the floor) and noise is (the ceiling)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .classifier import Features, principal_components, train_classifier
from .data import Dataset, Samples
from .extras import extra

_MAX_IMAGES = 10_000
_NUM_POINTS = 1_000

Generate = Callable[[int, Tensor | None], Tensor]  # (num, labels) -> samples in the data's own units


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Squared Fréchet distance of two Gaussians fitted to features ``[N, F]``, in float64.

    ``|m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^{1/2})``. With the features of an Inception network it is called FID
    (Heusel et al., 1706.08500, equation 6); with any other features, as here, it is not comparable with published FIDs.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.cov(f.mT).reshape(f.shape[1], f.shape[1]) for f in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root_a = (vectors * values.clamp_min(0.0).sqrt()) @ vectors.mT
    cross = torch.linalg.eigvalsh(root_a @ cov_b @ root_a).clamp_min(0.0).sqrt().sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return max(0.0, float(means + cov_a.trace() + cov_b.trace() - 2.0 * cross))


def wasserstein2(a: Tensor, b: Tensor) -> float:
    """The exact 2-Wasserstein distance of two sets of N points ``[N, D]``: ``sqrt(min_π mean_i |a_i - b_π(i)|²)``.

    Raises:
        ValueError: the sets differ in shape.
    """
    if a.shape != b.shape:
        raise ValueError(f"both point sets must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    cost = torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").square().numpy()
    rows, columns = extra("scipy.optimize").linear_sum_assignment(cost)
    return math.sqrt(cost[rows, columns].mean())


def evaluate(
    data: Dataset, generate: Generate, noise: Callable[[int], Tensor], num: int | None, seed: int
) -> dict[str, float]:
    """The final metrics of a run; every one is a function of the data, the model and the seed.

    Images and latents: ``frechet_distance`` between samples and all real data, in the features of a classifier that
    was trained on a random half of the real data (principal components where there are no labels);
    ``frechet_floor`` between that half and the other; ``frechet_noise`` between noise and all real data;
    ``class_accuracy``, the share of samples that the classifier takes for the class asked for, and
    ``class_accuracy_real``, the same share of the real images it was not trained on. As is customary for this
    distance, the real data is what the model was trained on: it does not tell learning from memorising.

    Points: ``w2``, ``w2_floor`` and ``w2_noise``, exact Wasserstein distances from a real draw to samples, to a second
    real draw, and to noise.

    Args:
        data: the real data.
        generate: ``(num, labels) -> samples``.
        noise: ``num -> samples`` that an untrained model returns: what the noise ceiling is measured on.
        num: number of samples; None for as many as real ones.
        seed: of the split, the classifier and the draws.
    """
    if data.spec.kind == "points":
        return _evaluate_points(data, generate, noise, num or _NUM_POINTS, seed)
    return _evaluate_images(data, generate, noise, num, seed)


def _evaluate_points(
    data: Dataset, generate: Generate, noise: Callable[[int], Tensor], num: int, seed: int
) -> dict[str, float]:
    one, other = data.halves(num, seed)
    num = min(len(one), len(other))
    real = one.x[:num]
    return {
        "w2": wasserstein2(generate(num, None), real),
        "w2_floor": wasserstein2(other.x[:num], real),
        "w2_noise": wasserstein2(noise(num), real),
    }


def _evaluate_images(
    data: Dataset, generate: Generate, noise: Callable[[int], Tensor], num: int | None, seed: int
) -> dict[str, float]:
    train, test = data.halves(_MAX_IMAGES, seed)
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
    x = generate(num, y)
    metrics = {
        "frechet_distance": frechet_distance(features(x), features(real)),
        "frechet_floor": frechet_distance(features(train.x), features(test.x)),
        "frechet_noise": frechet_distance(features(noise(num)), features(real)),
    }
    if classifier is not None:
        metrics["class_accuracy"] = classifier.accuracy(Samples(x, y))
        metrics["class_accuracy_real"] = classifier.accuracy(test)
    return metrics
