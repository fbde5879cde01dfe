"""The flow-step kernels as custom ops: opaque, functional and traceable. Derivatives live in ``_flow_step_rules``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.library.custom_op("fastflow::affine", mutates_args=())
def affine(
    x1: Tensor,
    x0: Tensor | None,
    z: Tensor | None,
    c1: Tensor,
    c0: Tensor,
    cz: Tensor,
    x0_stream: Sequence[int],
    z_stream: Sequence[int],
    dtype: torch.dtype,
) -> Tensor:
    """``c1 x1 + c0 x0 + cz z`` in dtype, contiguous, the shape of x1."""
    from ...kernels.flow_step.interpolate import Terms, interpolate

    return interpolate(Terms(x1, x0, z, c1, c0, cz, tuple(x0_stream), tuple(z_stream)), dtype)


@affine.register_fake
def _(x1: Tensor, *rest: Any) -> Tensor:
    return x1.new_empty(x1.shape, dtype=rest[-1])


@torch.library.custom_op("fastflow::squared_error", mutates_args=())
def squared_error(
    pred: Tensor,
    x1: Tensor,
    x0: Tensor | None,
    z: Tensor | None,
    c1: Tensor,
    c0: Tensor,
    cz: Tensor,
    x0_stream: Sequence[int],
    z_stream: Sequence[int],
) -> Tensor:
    """``sum_j (pred - c1 x1 - c0 x0 - cz z)_bj^2``, fp32 ``[B]``."""
    from ...kernels.flow_step import loss

    return loss.squared_error(pred, loss.Terms(x1, x0, z, c1, c0, cz, tuple(x0_stream), tuple(z_stream)))


@squared_error.register_fake
def _(pred: Tensor, *rest: Any) -> Tensor:
    return pred.new_empty(pred.shape[:1], dtype=torch.float32)


@torch.library.custom_op("fastflow::squared_error_grad", mutates_args=())
def squared_error_grad(
    grad: Tensor,
    pred: Tensor,
    x1: Tensor,
    x0: Tensor | None,
    z: Tensor | None,
    c1: Tensor,
    c0: Tensor,
    cz: Tensor,
    x0_stream: Sequence[int],
    z_stream: Sequence[int],
) -> Tensor:
    """``2 grad_b (pred - c1 x1 - c0 x0 - cz z)`` in pred's dtype, contiguous. grad: ``[B]``."""
    from ...kernels.flow_step import loss

    terms = loss.Terms(x1, x0, z, c1, c0, cz, tuple(x0_stream), tuple(z_stream))
    return loss.squared_error_backward(grad, pred, terms)


@squared_error_grad.register_fake
def _(grad: Tensor, pred: Tensor, *rest: Any) -> Tensor:
    return pred.new_empty(pred.shape)
