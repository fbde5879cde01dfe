"""Fields, modes and methods that the tests of divergence share."""

import pytest
import torch
from torch import Tensor

MODES = ["forward", "reverse", "auto"]
METHODS = [{"method": "exact"}, {"num_probes": 5}, {"method": "hutch++", "num_probes": 7}]
modes = pytest.mark.parametrize("mode", MODES)
methods = pytest.mark.parametrize("method", METHODS, ids=["exact", "hutchinson", "hutch++"])


def matrix(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(size), dtype=dtype)


def points(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def linear(A: Tensor):
    """Return the field that maps the elements of each sample to A x."""
    return lambda x: (x.flatten(1) @ A.T).view(x.shape) if x.ndim > 1 else A[0, 0] * x


def curved(A: Tensor):
    """Return a nonlinear field with a full Jacobian."""
    return lambda x: torch.tanh(linear(A)(x)) * (1 + x.square())
