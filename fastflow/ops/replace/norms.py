"""Replacements for layer, batch and instance norm.

PyTorch gets their gradients through the tangent wrong, forward or by two VJPs, and derivatives of VJPs under vmap.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._torch import inside_transform, traced_by_autograd
from .. import _norms
from ..norm import layer_norm as own_layer_norm
from .block import valid_shape
from .state import active_backend, tangent_possible

Original = Callable[..., Any]


def layer_norm(
    original: Original,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *rest: Any,
    **options: Any,
) -> Tensor:
    """Replace ``F.layer_norm`` and ``torch.layer_norm``, under AOTAutograd's tracing by the norm written out."""
    shape = valid_shape(input, normalized_shape, weight, bias)
    if shape is None or not (_nested() or _norms.is_recorded(input, weight, bias)):
        return original(input, normalized_shape, weight, bias, eps, *rest, **options)
    if not _nested():
        return _norms.recorded_layer_norm(input, shape, weight, bias, eps)
    if traced_by_autograd():
        return _norms.layer_norm(_norms.autocast(input), len(shape), weight, bias, eps)
    rows: list[Any] = [None if x is None else x.flatten(-len(shape)) for x in (input, weight, bias)]
    return own_layer_norm(*rows, eps=eps, backend=active_backend() or "auto").reshape(input.shape)


def native_layer_norm(
    original: Original,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace ``torch.native_layer_norm``, which also ignores the gradients of its second and third result."""
    shape = valid_shape(input, normalized_shape, weight, bias)
    if shape is None or not (_nested() or _graph_possible(input)):
        return original(input, normalized_shape, weight, bias, eps)
    x = _norms.autocast(input)
    y, mean, rstd = _norms.standardized(x, tuple(range(-len(shape), 0)), eps)
    statistics = x.dtype if weight is None else weight.dtype
    return _norms.affine(y, weight, bias).to(x.dtype), mean.to(statistics), rstd.to(statistics)


def batch_norm(
    original: Original,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Replace ``torch.batch_norm``, which ``F.batch_norm`` calls, where it normalizes by the batch's own statistics."""
    fixed = (running_mean, running_var, training, momentum, eps, cudnn_enabled)
    if not training or not (_nested() or _norms.is_recorded(input, weight, bias)):
        return original(input, weight, bias, *fixed)
    original(*_detached(input, weight, bias), *fixed)  # checks the arguments and updates the running statistics
    return _batch_norm(input, weight, bias, eps)[0]


def native_batch_norm(
    original: Original,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Replace ``torch.native_batch_norm``, which also ignores the gradients of its second and third result."""
    fixed = (running_mean, running_var, training, momentum, eps)
    if not training or not (_nested() or _graph_possible(input)):
        return original(input, weight, bias, *fixed)
    _, mean, _ = original(*_detached(input, weight, bias), *fixed)
    out, *statistics = _batch_norm(input, weight, bias, eps)
    return out, *(x.flatten().to(mean.dtype) for x in statistics)  # type: ignore[return-value]


def instance_norm(
    original: Original,
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Tensor:
    """Replace ``torch.instance_norm``, which ``F.instance_norm`` calls, where it normalizes by own statistics."""
    fixed = (running_mean, running_var, use_input_stats, momentum, eps, cudnn_enabled)
    if not use_input_stats or not (_nested() or _norms.is_recorded(input, weight, bias)):
        return original(input, weight, bias, *fixed)
    original(*_detached(input, weight, bias), *fixed)
    return _instance_norm(input, weight, bias, eps)


def weight_norm(original: Original, v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """Replace ``torch._weight_norm``, whose double backward is wrong and which has no forward mode."""
    if not (_nested() or _graph_possible(v, g)):
        return original(v, g, dim)
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _batch_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    y, mean, rstd = _norms.standardized(input, (0, *range(2, input.ndim)), eps)
    return _channelwise(y, weight, bias).to(input.dtype), mean, rstd


def _instance_norm(input: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    y = _norms.standardized(input, tuple(range(2, input.ndim)), eps).y
    return _channelwise(y, weight, bias).to(input.dtype)


def _channelwise(y: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    shape = (-1, *(1,) * (y.ndim - 2))
    return _norms.affine(y, *(None if x is None else x.reshape(shape) for x in (weight, bias)))


def _detached(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x.detach() for x in tensors]


def _nested() -> bool:
    """Return True where PyTorch's formulas may be wrong: in forward mode, and for VJPs under vmap."""
    return tangent_possible() or inside_transform()


def _graph_possible(*tensors: Tensor) -> bool:
    """Return True if a second derivative of a function of these may be wanted later."""
    if torch.compiler.is_compiling() or inside_transform():
        return True
    return torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)
