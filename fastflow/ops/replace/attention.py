"""Replacement for ``F.scaled_dot_product_attention``."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..._torch import inside_transform, traced_by_autograd
from ..attention import attention
from .state import active_backend, tangent_possible


def scaled_dot_product_attention(
    original: Callable[..., Any],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Call :func:`fastflow.attention`; with dropout, or under AOTAutograd's tracing, PyTorch's own attention.

    AOTAutograd reaches this from a function that torch.compile did not trace into, and would lose the backward of the
    tangent there. Where a derivative may be wanted, PyTorch's own is its math attention.
    """
    rest = (attn_mask, dropout_p, is_causal)
    if not isinstance(query, Tensor):
        return original(query, key, value, *rest, scale=scale, enable_gqa=enable_gqa)
    if traced_by_autograd() or (isinstance(dropout_p, (int, float)) and dropout_p > 0):
        differentiable = tangent_possible() or inside_transform()
        with sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext():
            return original(query, key, value, *rest, scale=scale, enable_gqa=enable_gqa)
    return attention(query, key, value, *rest, scale, enable_gqa, backend=active_backend() or "auto")
