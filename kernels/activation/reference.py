"""The definition of the activations and their tangents, ``f(x, b) = φ(x) ∘ b``; without b the factor is 1.

``aten.py`` and the Triton kernels are tested against this file, and torch.compile traces it. Numbers in comments are
the equations of README.md. Shapes: x and b alike; their tangents tx and tb with a leading K, None for zero.
"""

import math

import torch
from torch import Tensor

from ..._dtypes import at_least_float32

KINDS = ("gelu", "gelu_tanh", "silu")
CUBIC = 0.044715
SLOPE = 2 * math.sqrt(2 / math.pi)
SATURATED = 30.0  # from here on the tanh form is 0 or x in every dtype; powers of a larger x would overflow


def forward(x: Tensor, b: Tensor | None, kind: str) -> Tensor:
    """Return ``φ(x) ∘ b``, computed at least in float32, in the dtype of x."""
    phi, _ = _curve(x.to(at_least_float32(x)), kind)
    return (phi if b is None else phi * b).to(x.dtype)  # (1)


def dual_forward(x: Tensor, b: Tensor | None, tx: Tensor | None, tb: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """Return out and its tangents, ``[K, ...]``."""
    phi, slope = _curve(x.to(at_least_float32(x)), kind)
    out = phi if b is None else phi * b
    terms = [] if tx is None else [(slope if b is None else slope * b) * tx]
    terms += [] if tb is None else [phi * tb]
    return out.to(x.dtype), sum(terms[1:], terms[0]).to(x.dtype)  # (2)


def _curve(x: Tensor, kind: str) -> tuple[Tensor, Tensor]:
    """Return φ and φ' at x."""
    if kind == "gelu":
        cumulative = 0.5 * (1 + torch.erf(x * math.sqrt(0.5)))  # (3)
        density = torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)
        return x * cumulative, cumulative + x * density
    v, dv = x, torch.ones_like(x)  # (4)
    if kind == "gelu_tanh":
        v, dv = SLOPE * (x + CUBIC * x * x * x), SLOPE * (1 + 3 * CUBIC * x * x)
    sigma = torch.sigmoid(v)
    return x * sigma, sigma + x * sigma * (1 - sigma) * dv
