"""Random choices, all from one seed."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

T = TypeVar("T")


class Draw:
    """A source of random choices and of tensors with awkward strides."""

    def __init__(self, *seed: int) -> None:
        self._choices = np.random.default_rng(seed)
        self._values = torch.Generator().manual_seed(int(self._choices.integers(2**62)))

    def chance(self, probability: float) -> bool:
        return bool(self._choices.random() < probability)

    def one(self, choices: Sequence[T]) -> T:
        return choices[int(self._choices.integers(len(choices)))]

    def some(self, choices: Sequence[T]) -> list[T]:
        """Choose a non-empty subset, in order."""
        keep = [self.chance(0.5) for _ in choices]
        keep[int(self._choices.integers(len(choices)))] = True
        return [choice for choice, kept in zip(choices, keep) if kept]

    def integer(self, low: int, high: int) -> int:
        """Choose an integer, both ends included."""
        return int(self._choices.integers(low, high + 1))

    def uniform(self, low: float, high: float) -> float:
        return float(self._choices.uniform(low, high))

    def normal(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=self._values, dtype=torch.float64).to(dtype)

    def unit(self, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.rand(shape, generator=self._values, dtype=torch.float64).to(dtype)

    def strided(self, x: Tensor) -> Tensor:
        """Return the values of x in a random memory layout: dense, permuted, a slice, or with padded rows."""
        layout = self.one(["dense", "dense", "permuted", "slice", "padded"])
        if x.ndim == 0 or layout == "dense":
            return x
        if layout == "permuted":
            order = self._choices.permutation(x.ndim).tolist()
            return x.permute(order).contiguous().permute([order.index(i) for i in range(x.ndim)])
        if layout == "slice":
            axis = self.integer(0, x.ndim)
            return torch.stack([x, x], dim=axis).select(axis, 1)
        return torch.cat([x, x[..., :1]], -1)[..., :-1]
