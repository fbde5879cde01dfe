"""The definition of the norms and their tangents, in differentiable PyTorch.

``aten.py`` and the Triton kernels are tested against this file, and torch.compile traces it. Numbers in comments are
the equations of README.md. Shapes: x ``[G, M, D]``; scale and shift ``[G, 1 or M, D]`` or None; tangents with a leading
K, or None for zero.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..._dtypes import at_least_float32


class Standardized(NamedTuple):
    """n = (x − mean) rstd, with mean and rstd ``[..., 1]``; mean is None if the norm does not centre."""

    n: Tensor
    mean: Tensor | None
    rstd: Tensor


def forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, *, eps: float, centred: bool, unit: bool, dtype: torch.dtype
) -> Tensor:
    """Return out ``[G, M, D]`` in dtype, computed at least in float32. unit: the factor is 1 + scale."""
    n = standardized(x.to(wide_dtype(x, scale, shift)), eps, centred).n
    return modulated(n, scale, shift, unit).to(dtype)


def dual_forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None,
    *, eps: float, centred: bool, unit: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return out ``[G, M, D]`` and t_out ``[K, G, M, D]`` in dtype."""
    n, _, rstd = standardized(x.to(wide_dtype(x, scale, shift)), eps, centred)
    u = None if tx is None else jacobian_times(tx.to(n.dtype), n, rstd, centred)
    t_out = modulated_tangent(n, u, scale, t_scale, t_shift, unit)
    return modulated(n, scale, shift, unit).to(dtype), t_out.to(dtype)


def standardized(x: Tensor, eps: float, centred: bool) -> Standardized:
    """Standardize x over the last axis, in x's dtype."""
    mean = x.mean(-1, keepdim=True) if centred else None
    x = x if mean is None else x - mean
    rstd = torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return Standardized(x * rstd, mean, rstd)  # (1)


def jacobian_times(v: Tensor, n: Tensor, rstd: Tensor, centred: bool) -> Tensor:
    """Return J v, J the symmetric Jacobian of n in x."""
    own = (v * n).mean(-1, keepdim=True)
    v = v - v.mean(-1, keepdim=True) if centred else v
    return rstd * (v - n * own)  # (2)


def modulated(n: Tensor, scale: Tensor | None, shift: Tensor | None, unit: bool) -> Tensor:
    """Return n ∘ s + shift."""
    out = n if scale is None else n * factor(scale, unit).to(n.dtype)  # (3)
    return out if shift is None else out + shift.to(n.dtype)


def modulated_tangent(
    n: Tensor, u: Tensor | None, scale: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None, unit: bool
) -> Tensor:
    """Return the tangent of :func:`modulated`, ``[K, ...]``; u: that of n. Not all of them are None."""
    terms = []  # (4)
    if u is not None:
        terms.append(u if scale is None else u * factor(scale, unit).to(u.dtype))
    if t_scale is not None:
        terms.append(n * t_scale.to(n.dtype))
    if t_shift is not None:
        terms.append(t_shift.to(n.dtype).expand(*t_shift.shape[:-2], *n.shape[-2:]))
    return sum(terms[1:], terms[0])


def factor(scale: Tensor, unit: bool) -> Tensor:
    """Return s, which multiplies n."""
    scale = scale.to(at_least_float32(scale))
    return 1 + scale if unit else scale


def wide_dtype(*tensors: Tensor | None) -> torch.dtype:
    """Return the dtype in which a norm of these is computed."""
    for x in tensors:
        if x is not None and x.dtype == torch.float64:
            return torch.float64
    return torch.float32
