"""Layer and RMS norm whose tangents can be differentiated.

PyTorch's fused norms compute the tangent from the saved mean and reciprocal deviation and treat those as constants
afterwards: a gradient taken through the tangent is silently wrong (pytorch#196700). They serve here where there is no
tangent; everywhere else the norm is written out.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._torch import inside_transform
from ..ops._tangents import has_tangent


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """``(x − mean x) / sqrt(var x + eps)`` over the last axis, with every derivative.

    Args:
        x: ``[..., D]``.
        eps: what keeps a constant row finite.

    Returns:
        The shape of x.

    Source: Ba et al. (1607.06450), without gain and bias.
    """
    if _written_out(x):
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return _rms_norm(wide - wide.mean(dim=-1, keepdim=True), eps).to(x.dtype)
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class RMSNorm(nn.Module):
    """``g ∘ x / sqrt(mean x² + eps)`` over the last axis, with every derivative.

    Args:
        size: length of the last axis.
        eps: what keeps a zero row finite.

    Source: Zhang and Sennrich (1910.07467).
    """

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x: ``[..., size]``; returns the same shape."""
        if _written_out(x, self.weight):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            return (self.weight * _rms_norm(wide, self.eps)).to(x.dtype)
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def _rms_norm(x: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)


def _written_out(*tensors: Tensor) -> bool:
    # a compiler fuses the written-out form anyway
    return torch.compiler.is_compiling() or inside_transform() or has_tangent(*tensors)
