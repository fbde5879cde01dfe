"""What is being traced or transformed around a call."""

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd.forward_ad import unpack_dual


@torch.compiler.assume_constant_result
def inside_transform() -> bool:
    """Whether a torch.func transform (vmap, grad, jvp, ...) is active; torch.compile may ask while it traces."""
    return _functorch.peek_interpreter_stack() is not None


def has_tangent(*tensors: Tensor | None) -> bool:
    """Whether forward-mode AD carries a tangent on any of these."""
    return any(x is not None and unpack_dual(x).tangent is not None for x in tensors)
