"""What is being traced or transformed around a call."""

from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad
from torch.autograd.forward_ad import make_dual, unpack_dual


@torch.compiler.assume_constant_result
def inside_transform() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp, ...) is active; torch.compile may ask while it traces."""
    return _functorch.peek_interpreter_stack() is not None


def differentiating(*args: Any) -> bool:
    """Whether anything could ask for a derivative of a function of these, or map over it."""
    recording = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in args)
    return recording or forward_ad._current_level >= 0 or inside_transform()


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode AD carries a tangent on any of these."""
    return any(x is not None and unpack_dual(x).tangent is not None for x in tensors)


def complete_tangents(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Give every tensor a tangent, zeros where it has none, if torch.compile is tracing a tangent on one of them.

    A missing tangent is a zero tensor without memory, which the backward compiled by Inductor reads at address 0
    (PyTorch 2.11 and 2.13); written-out zeros are folded away.
    """
    if not torch.compiler.is_compiling() or not has_tangent(*tensors):
        return tensors
    return tuple(x if x is None or has_tangent(x) else make_dual(x, torch.zeros_like(x)) for x in tensors)
