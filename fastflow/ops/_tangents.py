"""Tangents that forward-mode AD carries on tensors."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual, unpack_dual


def has_tangent(*tensors: Tensor | None) -> bool:
    """Return True if forward-mode AD carries a tangent on any of these."""
    return any(x is not None and unpack_dual(x).tangent is not None for x in tensors)


def complete_tangents(*tensors: Tensor | None) -> tuple[Any, ...]:
    """Under torch.compile, give every tensor a tangent, of zeros where it has none, if any of them has one.

    A missing tangent is a zero tensor without memory, which the backward compiled by Inductor reads at address 0
    (PyTorch 2.11 and 2.13); zeros that are written out are folded away. An expanded tensor of symbolic shape takes a
    tangent only once it is contiguous.
    """
    if not torch.compiler.is_compiling() or not has_tangent(*tensors):
        return tensors
    return tuple(x if x is None or has_tangent(x) else _with_zeros(x.contiguous()) for x in tensors)


def _with_zeros(x: Tensor) -> Tensor:
    return make_dual(x, torch.zeros_like(x))
