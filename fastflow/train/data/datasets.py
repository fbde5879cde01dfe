"""Data sets, and the batch of each step."""

import functools
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ...ops.random import permutation
from ..points import draw
from ..purposes import Purpose
from .spec import DataSpec


class Dataset(Protocol):
    """Data to train on."""

    @property
    def spec(self) -> DataSpec:
        """Description of the data."""

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return the samples ``[size, *shape]`` and classes of a step, a pure function of (seed, step)."""

    def halves(self, num: int, seed: int) -> tuple["Samples", "Samples"]:
        """Return two disjoint sets of at most ``num`` real samples each."""


@dataclass(frozen=True)
class Samples:
    """Samples ``[N, *shape]`` in the data's own units, with class indices ``[N]`` or None."""

    x: Tensor
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class ArrayData:
    """A finite data set in memory, reshuffled every epoch."""

    spec: DataSpec
    samples: Samples

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return the samples at positions ``step * size ...`` of the endless sequence of shuffled epochs."""
        num = len(self.samples)
        position = torch.arange(step * size, (step + 1) * size)
        epochs = range(step * size // num, ((step + 1) * size - 1) // num + 1)
        order = torch.cat([_epoch_order(num, seed, epoch) for epoch in epochs])
        index = order[position - epochs[0] * num]
        return self.samples.x[index], None if self.samples.y is None else self.samples.y[index]

    def halves(self, num: int, seed: int) -> tuple[Samples, Samples]:
        """Return a random half of the data and the other half, at most ``num`` samples of each."""
        order = permutation(len(self.samples), seed, Purpose.SPLIT.at(0))
        half = len(order) // 2
        return self._take(order[:half][:num]), self._take(order[half:][:num])

    def _take(self, index: Tensor) -> Samples:
        return Samples(self.samples.x[index], None if self.samples.y is None else self.samples.y[index])


@dataclass(frozen=True)
class PointData:
    """A two-dimensional distribution; every batch is a new draw."""

    spec: DataSpec
    name: str

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, None]:
        """Draw new points; there are no labels."""
        return draw(self.name, size, seed, step), None

    def halves(self, num: int, seed: int) -> tuple[Samples, Samples]:
        """Return two draws that training never makes."""
        last = (1 << 48) - 1
        return Samples(draw(self.name, num, seed, last)), Samples(draw(self.name, num, seed, last - 1))


@functools.lru_cache(maxsize=2)
def _epoch_order(num: int, seed: int, epoch: int) -> Tensor:
    return permutation(num, seed, Purpose.SHUFFLE.at(epoch))
