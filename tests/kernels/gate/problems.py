"""Operands, tangents and cotangents of the gate's functions, and their oracle by autograd."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.compare import DEVICE

TOLERANCES = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
Shape = tuple[int, ...]


def draw(shapes: Sequence[Shape | None], dtype: torch.dtype, seed: int = 0) -> list[Any]:
    """Draw a tensor of each shape, None for None."""
    generator = torch.Generator().manual_seed(seed)
    return [None if s is None else torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes]


def oracle(
    dual_forward: Callable[..., Sequence[Tensor]], x: Sequence[Any], tangents: Sequence[Any], cotangents: Sequence[Any]
) -> tuple[list[Tensor], list[Any]]:
    """Return the outputs in float64, and the gradients of x and of the tangents for the cotangents; None is zero."""
    given = [None if t is None else t.detach().double().clone().requires_grad_() for t in (*x, *tangents)]
    outputs = dual_forward(*given)
    pairs = [(y, c.double()) for y, c in zip(outputs, cotangents) if c is not None and y.requires_grad]
    leaves = [t for t in given if t is not None]
    ys, cs = zip(*pairs)
    grads = iter(torch.autograd.grad(ys, leaves, cs, materialize_grads=True))
    return [y.detach() for y in outputs], [None if t is None else next(grads) for t in given]
