"""Rotary embedding and its transpose from PyTorch's own kernels, without temporaries as large as x.

The number in a comment is an equation of README.md. Shapes: x ``[G, H, N, D]``, tx with a leading K; cos and sin
``[G or 1, H or 1, N, R/2]``.
"""

import torch
from torch import Tensor

from ..._dtypes import at_least_float32


def rotate(
    x: Tensor | None, tx: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool, transpose: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return ``R x`` and ``R tx``, or with ``Rᵀ``, contiguous, in their dtypes; None for None."""
    sin = -sin if transpose else sin
    out, t_out = (None if y is None else _rotated(y, cos, sin, interleaved) for y in (x, tx))
    return out, t_out


def _rotated(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    wide, width = at_least_float32(x), 2 * cos.shape[-1]
    cos, sin = cos.to(wide), sin.to(wide)
    turned = torch.empty((*x.shape[:-1], width), dtype=wide, device=x.device)
    _turn(x[..., :width].to(wide), cos, sin, interleaved, turned)
    if turned.shape == x.shape and turned.dtype == x.dtype:
        return turned
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    out[..., :width], out[..., width:] = turned, x[..., width:]
    return out


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, out: Tensor) -> None:
    """Write the rotation of x to out; adjacent pairs take one pass, as complex numbers."""
    if interleaved:
        torch.mul(_as_complex(x), torch.complex(cos, sin), out=_as_complex(out))
        return
    (first, second), (out_first, out_second) = x.chunk(2, -1), out.chunk(2, -1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-1)  # (1)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin)


def _as_complex(x: Tensor) -> Tensor:
    """View neighbours as one complex number; copy x if its rows do not start at even places."""
    if x.stride(-1) != 1 or any(s % 2 for s in (*x.stride()[:-1], x.storage_offset())):
        x = x.clone(memory_format=torch.contiguous_format)
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)))
