"""The flow-step kernels as custom ops: opaque, functional and traceable. Their derivatives are in ``rules.py``."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._custom_op import custom_op
from .problem import Operands

if TYPE_CHECKING:
    from ...kernels.flow_step._launch import Terms  # imports Triton

# of problem.Operands
_OPERANDS = "Tensor x1, Tensor? x0, Tensor? z, Tensor c1, Tensor c0, Tensor cz, SymInt[] x0_stream, SymInt[] z_stream"


@custom_op("affine", f"({_OPERANDS}, ScalarType dtype) -> Tensor")
def affine(*inputs: Any) -> Tensor:
    """Return ``c1 x1 + c0 x0 + cz z`` in dtype, contiguous, in the shape of x1."""
    from ...kernels.flow_step.interpolate import interpolate

    *operands, dtype = inputs
    return interpolate(_terms(operands), dtype)


@affine.register_fake
def _(x1: Tensor, *rest: Any) -> Tensor:
    *_, dtype = rest
    return x1.new_empty(x1.shape, dtype=dtype)


@custom_op("squared_error", f"(Tensor pred, {_OPERANDS}) -> Tensor")
def squared_error(pred: Tensor, *operands: Any) -> Tensor:
    """Return ``sum_j (pred - c1 x1 - c0 x0 - cz z)_bj^2``, fp32 ``[B]``."""
    from ...kernels.flow_step import loss

    return loss.squared_error(pred, _terms(operands))


@squared_error.register_fake
def _(pred: Tensor, *operands: Any) -> Tensor:
    return pred.new_empty(pred.shape[:1], dtype=torch.float32)


@custom_op("squared_error_grad", f"(Tensor grad, Tensor pred, {_OPERANDS}) -> Tensor")
def squared_error_grad(grad: Tensor, pred: Tensor, *operands: Any) -> Tensor:
    """Return ``2 grad_b (pred - c1 x1 - c0 x0 - cz z)`` in pred's dtype, contiguous; grad: ``[B]``."""
    from ...kernels.flow_step import loss

    return loss.squared_error_backward(grad, pred, _terms(operands))


@squared_error_grad.register_fake
def _(grad: Tensor, pred: Tensor, *operands: Any) -> Tensor:
    return pred.new_empty(pred.shape)


def _terms(inputs: Any) -> "Terms":
    from ...kernels.flow_step._launch import Terms

    operands = Operands(*inputs)
    return Terms(*operands.tensors, *map(tuple, operands.streams))
