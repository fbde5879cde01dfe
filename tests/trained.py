"""Models trained for a second or two, for tests that need one that has learned something."""

import functools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

import fastflow as ff

PATH = ff.paths.CondOT()
Batch = tuple[Tensor, Tensor | None]  # data and labels


def train(model: nn.Module, batches: Iterable[Batch], learning_rate: float) -> nn.Module:
    """Train with Adam on the flow-matching loss."""
    optimizer = torch.optim.Adam(model.parameters(), learning_rate)
    for step, (x1, y) in enumerate(batches):
        t = ff.paths.sample_times(PATH, len(x1), seed=1, offset=step)
        x0 = ff.GaussianNoise(2, step)
        pred = model(ff.interpolate(x0, x1, t, path=PATH), t, y)
        optimizer.zero_grad()
        ff.flow_matching_loss(pred, x0, x1, t, path=PATH).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@functools.cache
def trained_points(name: str) -> nn.Module:
    """Train an MLP on one of the two-dimensional sets."""
    from fastflow.train.points import draw

    torch.manual_seed(0)
    return train(ff.nn.VelocityMLP(2), ((draw(name, 512, 0, step), None) for step in range(600)), 2e-3)


@functools.cache
def trained_digits() -> nn.Module:
    """Train a small DiT on the 8 x 8 digits in [-1, 1]."""
    from fastflow.train.data import load_data

    pytest.importorskip("sklearn")
    data = load_data("digits")

    def batches() -> Iterable[Batch]:
        for step in range(200):
            x, y = data.batch(step, 32, 0)
            yield 2 * x - 1, y

    torch.manual_seed(0)
    return train(ff.nn.DiT(8, 2, 1, hidden_size=32, depth=2, num_heads=2, num_classes=10), batches(), 2e-3)
