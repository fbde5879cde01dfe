"""Rotary embedding and its transpose from PyTorch's own kernels, without temporaries as large as x.

The number in a comment is an equation of README.md. Shapes: x ``[..., H, N, D]``, cos and sin ``[..., N, R/2]``.
"""

import torch
from torch import Tensor

from ..._dtypes import at_least_float32


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, transpose: bool) -> Tensor:
    """Return ``R x``, or ``Rᵀ x``, contiguous, in the dtype of x."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    half = cos.shape[-1]
    out[..., 2 * half :] = x[..., 2 * half :]
    wide = at_least_float32(x)
    cos, sin = cos.to(wide), sin.to(wide)
    first, second = _pairs(x if x.dtype == wide else x[..., : 2 * half].to(wide), half, interleaved)
    turned = out if out.dtype == wide else torch.empty((*x.shape[:-1], 2 * half), dtype=wide, device=x.device)
    out_first, out_second = _pairs(turned, half, interleaved)
    sign = -1 if transpose else 1
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)  # (1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)
    if turned is not out:
        out[..., : 2 * half] = turned
    return out


def _pairs(x: Tensor, half: int, interleaved: bool) -> tuple[Tensor, Tensor]:
    """View the two members of each pair, ``[..., R/2]``."""
    if interleaved:
        return x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2]
    return x[..., :half], x[..., half : 2 * half]
