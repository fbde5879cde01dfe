"""The definition of rotary embedding; ``aten.py`` and the Triton kernel are tested against this file.

The number in a comment is an equation of README.md. Shapes: x ``[..., H, N, D]``; cos and sin ``[..., N, R/2]``,
broadcastable to the leading axes of x; the last D − R channels pass through.
"""

import torch
from torch import Tensor

from ..._dtypes import at_least_float32


def forward(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Return ``R x``, computed at least in float32, in the dtype of x."""
    dtype, half = at_least_float32(x), cos.shape[-1]
    turned, rest = x[..., : 2 * half], x[..., 2 * half :]
    cos, sin = cos.to(dtype), sin.to(dtype)
    if interleaved:
        first, second = turned.to(dtype).unflatten(-1, (half, 2)).unbind(-1)
    else:
        first, second = turned.to(dtype).split(half, -1)
    pairs = first * cos - second * sin, first * sin + second * cos  # (1)
    turned = torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
    return torch.cat((turned.to(x.dtype), rest), -1)


def dual_forward(x: Tensor, tx: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Return out and its tangents, ``[K, ...]``: R is linear."""
    return forward(x, cos, sin, interleaved), forward(tx, cos, sin, interleaved)
