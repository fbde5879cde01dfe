"""Select the implementation of a flow-step call, once per call."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ... import _backend
from . import eager, rules
from .problem import Combination


class Implementation(NamedTuple):
    """Differentiable functions that compute the flow step.

    affine: ``(combination, dtype)`` to the combination in dtype. squared_error: ``(pred, combination)`` to the sum of
    squares of each sample, ``[B]``. total_squared_error: ``(pred, combination, "sum" or "mean")`` to a scalar, if there
    is a faster way than to reduce the samples' sums.
    """

    affine: Callable[[Combination, torch.dtype], Tensor]
    squared_error: Callable[[Tensor, Combination], Tensor]
    total_squared_error: Callable[[Tensor, Combination, str], Tensor] | None


_KERNELS = Implementation(rules.affine, rules.squared_error, None)
_EAGER = Implementation(eager.affine, eager.squared_error, eager.total_squared_error)


def select(combination: Combination, backend: str, *others: Tensor) -> Implementation:
    """Choose the implementation for a combination; others: more tensors that the kernels would have to take."""
    choice = _backend.resolve(backend, "flow_step", *combination.tensors, *others)
    return _KERNELS if choice == "triton" else _EAGER
