"""The batching rule of the flow step's Functions: map a differentiable PyTorch function instead of the kernel."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def vmapped(function: Callable[..., Tensor], in_dims: tuple[Any, ...], inputs: tuple[Any, ...]) -> tuple[Tensor, int]:
    """Map function over the batch axes of its inputs; ``torch.vmap`` sees the tensors among them only."""
    index = [i for i, x in enumerate(inputs) if isinstance(x, Tensor)]

    def call(*tensors: Tensor) -> Tensor:
        full = list(inputs)
        for i, x in zip(index, tensors, strict=True):
            full[i] = x
        return function(*full)

    return torch.vmap(call, tuple(in_dims[i] for i in index))(*(inputs[i] for i in index)), 0
