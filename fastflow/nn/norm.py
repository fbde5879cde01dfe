"""Layer and RMS norm whose tangents can be differentiated.

PyTorch's fused norms are used if there is no tangent. Otherwise the norm is written out, because a gradient through the
tangent of PyTorch's layer norm is silently wrong (pytorch#196700).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .._torch import inside_transform
from ..ops import _norms
from ..ops._tangents import has_tangent


def layer_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Return ``(x − mean x) / sqrt(var x + eps)`` over the last axis, differentiable in every mode.

    Args:
        x: ``[..., D]``.
        eps: keeps constant rows finite.

    Returns:
        A tensor of the shape of x.

    Source: Ba et al. (1607.06450), without gain and bias.
    """
    if _written_out(x):
        return _norms.layer_norm(x, 1, None, None, eps)
    if _norms.is_recorded(x):
        return _norms.recorded_layer_norm(x, (x.shape[-1],), None, None, eps)
    return F.layer_norm(x, x.shape[-1:], eps=eps)


class RMSNorm(nn.Module):
    """``g ∘ x / sqrt(mean x² + eps)`` over the last axis, differentiable in every mode.

    Args:
        size: length of the last axis.
        eps: keeps zero rows finite.

    Source: Zhang and Sennrich (1910.07467).
    """

    def __init__(self, size: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map x ``[..., size]`` to the same shape."""
        if _written_out(x, self.weight):
            return _norms.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def _written_out(*tensors: Tensor) -> bool:
    # a compiler fuses the written-out form as well
    return torch.compiler.is_compiling() or inside_transform() or has_tangent(*tensors)
