"""The definition of the gated residual and its tangents, which torch.compile traces and every other file is tested by.

Shapes: x and y ``[G, M, D]``, gate ``[G, 1 or M, D]``; tangents with a leading K, None for zero. Numbers in comments
are the equations of README.md.
"""

import functools

import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from ..norm import reference as norm


def forward(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """Return ``x + gate∘y``."""
    wide = at_least_float32(x, gate, y)
    return (x.to(wide) + gate.to(wide) * y.to(wide)).to(result_dtype(x, gate, y))  # (1)


def dual_forward(
    x: Tensor, gate: Tensor, y: Tensor, tx: Tensor | None, t_gate: Tensor | None, ty: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return out and t_out ``[K, ...]``."""
    out, wide = forward(x, gate, y), at_least_float32(x, gate, y)
    terms = [] if tx is None else [tx.to(wide)]
    terms += [a.to(wide) * b.to(wide) for a, b in ((t_gate, y), (gate, ty)) if a is not None and b is not None]
    t_out = functools.reduce(torch.add, terms)  # (2)
    return out, t_out.expand(-1, *out.shape).to(out.dtype)


def norm_forward(
    x: Tensor, gate: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None,
    *, eps: float, centred: bool, unit: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the sum ``x + gate∘y`` and its norm, modulated, in dtype."""
    total = forward(x, gate, y)
    return total, norm.forward(total, scale, shift, eps=eps, centred=centred, unit=unit, dtype=dtype)


def norm_dual_forward(
    x: Tensor, gate: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_gate: Tensor | None, ty: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None,
    *, eps: float, centred: bool, unit: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return sum, normed, and their tangents ``[K, ...]``."""
    options = {"eps": eps, "centred": centred, "unit": unit, "dtype": dtype}
    if tx is None and t_gate is None and ty is None:
        total, t_total = forward(x, gate, y), None
    else:
        total, t_total = dual_forward(x, gate, y, tx, t_gate, ty)
    normed, t_normed = norm.dual_forward(total, scale, shift, t_total, t_scale, t_shift, **options)
    if t_total is None:
        t_total = total.new_zeros(t_normed.shape)
    return total, normed, t_total, t_normed


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype that PyTorch promotes these to."""
    return functools.reduce(torch.promote_types, (x.dtype for x in tensors))
