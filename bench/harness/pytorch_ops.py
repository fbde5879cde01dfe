"""PyTorch's own ops with the signatures of fastflow's block ops."""

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastflow.ops import _norms


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *,
    shift: Tensor | None = None, scale: Tensor | None = None, eps: float = 1e-6, written_out: bool = False,
) -> Tensor:  # fmt: skip
    """Modulated layer norm of x ``[B, N, D]``; shift, scale: ``[B, D]``, ``[B, 1, D]`` or ``[B, N, D]``.

    written_out: because a gradient through the tangent of ``F.layer_norm`` is silently wrong (pytorch#196700).
    """
    y = _norms.layer_norm(x, 1, weight, bias, eps) if written_out else F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    return modulated(y, shift, scale)


def rms_norm(
    x: Tensor, weight: Tensor | None = None, *,
    shift: Tensor | None = None, scale: Tensor | None = None, eps: float = 1e-6,
) -> Tensor:  # fmt: skip
    return modulated(F.rms_norm(x, x.shape[-1:], weight, eps), shift, scale)


def modulated(x: Tensor, shift: Tensor | None, scale: Tensor | None) -> Tensor:
    x = x if scale is None else x * (1 + per_token(scale, x))
    return x if shift is None else x + per_token(shift, x)


def per_token(y: Tensor, x: Tensor) -> Tensor:
    return y.unsqueeze(1) if y.ndim < x.ndim else y


def gated_add(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    return x + per_token(gate, x) * y


def gated_add_layer_norm(x: Tensor, gate: Tensor, y: Tensor, *args: Any, **keywords: Any) -> tuple[Tensor, Tensor]:
    total = gated_add(x, gate, y)
    return total, layer_norm(total, *args, **keywords)


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def swiglu(a: Tensor, b: Tensor) -> Tensor:
    return F.silu(a) * b


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """Rotate the pairs of x ``[..., N, D]``; cos, sin: ``[N, R / 2]``, R at most D."""
    size = 2 * cos.shape[-1]
    turned, rest = x[..., :size], x[..., size:]
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    pairs = a * cos - b * sin, b * cos + a * sin
    out = torch.stack(pairs, -1).flatten(-2) if interleaved else torch.cat(pairs, -1)
    return torch.cat((out, rest), -1) if rest.shape[-1] else out


OPS: dict[str, Callable[..., Any]] = {
    "linear": F.linear,
    "layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "gated_add": gated_add,
    "gated_add_layer_norm": gated_add_layer_norm,
    "gelu": gelu,
    "silu": F.silu,
    "swiglu": swiglu,
    "rope": rope,
}


def reference_of(name: str, through_tangent: bool = True) -> Callable[..., Any]:
    """Return PyTorch's function for an op. through_tangent: whether a gradient may flow through a tangent."""
    norm = name in ("layer_norm", "gated_add_layer_norm")
    return functools.partial(OPS[name], written_out=True) if norm and through_tangent else OPS[name]
