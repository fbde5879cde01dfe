"""Replacements for the linear layer, the activations and RMS norm, whose derivatives are right but not fast.

PyTorch's tangent of a linear layer multiplies by zeros. Where no tangent passes, its own functions run.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._checks import why_not_dense
from ..._torch import forward_mode_active, has_tangent_at_any_level, traced_by_autograd
from ..activation import gelu as own_gelu
from ..activation import silu as own_silu
from ..linear import linear as own_linear
from ..norm import rms_norm as own_rms_norm
from .state import active_backend

Original = Callable[..., Any]


def linear(original: Original, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Replace ``F.linear``, which ties a program compiled inside a jvp to its batch size, with a tangent or without."""
    if not (passes_tangent(input, weight, bias) or (torch.compiler.is_compiling() and forward_mode_active())):
        return original(input, weight, bias)
    try:
        return own_linear(input, weight, bias)
    except (TypeError, ValueError):  # PyTorch takes more, or has a message of its own
        return original(input, weight, bias)


def rms_norm(
    original: Original,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    """Replace ``F.rms_norm`` and ``torch.rms_norm``."""
    shape = valid_shape(input, normalized_shape, weight)
    if shape is None or not passes_tangent(input, weight):
        return original(input, normalized_shape, weight, eps)
    wide = torch.float64 if input.dtype == torch.float64 else torch.float32
    out = own_rms_norm(
        input.flatten(-len(shape)),
        None if weight is None else weight.flatten(),
        eps=torch.finfo(wide).eps if eps is None else eps,
        backend=active_backend() or "auto",
    )
    return out.reshape(input.shape)


def gelu(original: Original, input: Tensor, approximate: str = "none") -> Tensor:
    """Replace ``F.gelu``."""
    if not passes_tangent(input) or approximate not in ("none", "tanh"):
        return original(input, approximate=approximate)
    return own_gelu(input, approximate, backend=active_backend() or "auto")


def silu(original: Original, input: Tensor, inplace: bool = False) -> Tensor:
    """Replace ``F.silu``, not where it works in place."""
    if inplace:
        return original(input, inplace=True)
    if not passes_tangent(input):
        return original(input)
    return own_silu(input, backend=active_backend() or "auto")


def passes_tangent(*operands: Tensor | None) -> bool:
    """Return True if forward mode computes a tangent of a function of these dense floating-point tensors."""
    if not forward_mode_active() or traced_by_autograd():
        return False
    given = [x for x in operands if x is not None]
    if not all(isinstance(x, Tensor) and x.is_floating_point() and why_not_dense(x) is None for x in given):
        return False
    return any(map(has_tangent_at_any_level, given))


def valid_shape(input: Any, normalized_shape: Any, *weights: Tensor | None) -> tuple[int, ...] | None:
    """Return normalized_shape, or None if PyTorch would refuse the arguments, or the input is no tensor."""
    if not isinstance(input, Tensor) or not input.is_floating_point():
        return None
    shape = tuple(normalized_shape)
    fits = bool(shape) and tuple(input.shape[-len(shape) :]) == shape
    return shape if fits and all(x is None or tuple(x.shape) == shape for x in weights) else None
