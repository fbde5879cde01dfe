"""The flow step in PyTorch's own operations, which differentiate themselves."""

from typing import Any

import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from ..._torch import inside_transform
from ...kernels.flow_step import reference
from .._tangents import complete_tangents
from ..random import GaussianNoise
from .problem import Combination


def affine(combination: Combination, dtype: torch.dtype) -> Tensor:
    """Return ``c1 x1 + c0 x0 + cz z`` in dtype."""
    x1, x0, z, *coefficients = combination
    xs = complete_tangents(x1, _as_tensor(x0, x1), _as_tensor(z, x1))
    return reference.affine(xs, coefficients, _is_eager()).to(dtype)


def squared_error(pred: Tensor, combination: Combination) -> Tensor:
    """Return ``sum_j (pred - c1 x1 - c0 x0 - cz z)_bj^2``, at least in fp32, ``[B]``."""
    return _reduced_error(pred, combination, "none")


def total_squared_error(pred: Tensor, combination: Combination, reduction: str) -> Tensor:
    """Return the sum or the mean of all squares, at least in fp32; zero if there are none."""
    return _reduced_error(pred, combination, reduction if pred.numel() else "sum")


def _reduced_error(pred: Tensor, combination: Combination, reduction: str) -> Tensor:
    x1, x0, z, *coefficients = combination
    pred, *xs = complete_tangents(pred, x1, _as_tensor(x0, x1), _as_tensor(z, x1))
    eager = _is_eager()
    return reference.squared_error(pred, reference.affine(xs, coefficients, eager), reduction, one_pass=eager)


def _is_eager() -> bool:
    return not (torch.compiler.is_compiling() or inside_transform())


def _as_tensor(x: Any, like: Tensor) -> Any:
    if not isinstance(x, GaussianNoise):
        return x
    # in PyTorch even with FASTFLOW_BACKEND=triton
    backend = "reference" if like.device.type == "cpu" else "auto"
    return x.materialize(like.shape, dtype=at_least_float32(like), device=like.device, backend=backend)
