"""The moving average of the weights that samples are drawn with."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from .._torch import foreach_lerp_

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """Exponential moving average of a model's parameters in fp32: ``e ← d e + (1 − d) p``.

    The decay d is ``min(decay, (1 + k) / (10 + k))`` at step k, so that the average forgets the initial weights early.

    Args:
        model: the model whose parameters are averaged.
        decay: the decay's limit.
    """

    def __init__(self, model: M, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)
        self._averages: list[Tensor] = list(self.model.parameters())
        self._parameters = list(model.parameters())

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average toward the parameters after step ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        foreach_lerp_(self._averages, [p.float() for p in self._parameters], 1.0 - decay)
