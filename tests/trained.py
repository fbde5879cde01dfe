"""Models trained for a few seconds, where a test needs one that has learned something."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import fastflow as ff

PATH = ff.paths.CondOT()
Batch = Callable[[int], tuple[Tensor, Tensor | None]]


def train(model: nn.Module, batch: Batch, steps: int) -> nn.Module:
    """Adam on the flow-matching loss; batch: step to data and labels."""
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    for step in range(steps):
        x1, y = batch(step)
        t = ff.paths.sample_times(PATH, len(x1), seed=1, offset=step)
        x0 = ff.GaussianNoise(2, step)
        pred = model(ff.interpolate(x0, x1, t, path=PATH), t, y)
        optimizer.zero_grad()
        ff.flow_matching_loss(pred, x0, x1, t, path=PATH).backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


@functools.cache
def trained_points(name: str) -> nn.Module:
    """A velocity of one of the two-dimensional sets."""
    from fastflow.train.points import draw

    torch.manual_seed(0)
    return train(ff.nn.VelocityMLP(2), lambda step: (draw(name, 512, 0, step), None), 600)


@functools.cache
def trained_digits() -> ff.nn.DiT:
    """A small DiT of the 8 x 8 digits in [-1, 1]."""
    from fastflow.train.data import load_data

    pytest.importorskip("sklearn")
    data = load_data("digits")

    def batch(step: int) -> tuple[Tensor, Tensor | None]:
        x, y = data.batch(step, 64, 0)
        return 2 * x - 1, y

    torch.manual_seed(0)
    return train(ff.nn.DiT(8, 2, 1, hidden_size=48, depth=2, num_heads=4, num_classes=10), batch, 400)
