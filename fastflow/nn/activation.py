"""Activations as modules."""

from torch import Tensor, nn

from ..ops.activation import gelu, swiglu


class GELU(nn.GELU):
    """``nn.GELU`` by :func:`fastflow.gelu`."""

    def forward(self, input: Tensor) -> Tensor:
        return gelu(input, self.approximate)


class SwiGLU(nn.Module):
    """``silu(a) ∘ b`` of the two halves of the last axis.

    Source: Shazeer, GLU Variants Improve Transformer (2002.05202).
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., 2 H]`` to ``[..., H]``."""
        a, b = input.chunk(2, dim=-1)
        return swiglu(a, b)
