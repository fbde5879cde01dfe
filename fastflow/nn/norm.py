"""The norms of the DiT, between a gated branch and the next one."""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from ..ops.gate import gated_add, gated_add_layer_norm
from ..ops.norm import layer_norm, rms_norm

NormKind = Literal["layer", "rms"]


class Branch(NamedTuple):
    """The output ``[B, N, D]`` of a branch and its gate ``[B, 1, D]``, to be added by the next norm."""

    gate: Tensor
    out: Tensor


def add_and_normalize(
    kind: NormKind, x: Tensor, branch: Branch | None, shift: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """Return ``x' = x + gate ∘ out`` and ``norm(x') (1 + scale) + shift``.

    Args:
        kind: ``"layer"`` or ``"rms"``, without weights.
        x: ``[B, N, D]``.
        branch: None for x' = x.
        shift: ``[B, 1, D]``.
        scale: ``[B, 1, D]``.
    """
    if kind == "rms":
        x = x if branch is None else gated_add(x, *branch)
        return x, rms_norm(x, shift=shift, scale=scale)
    if branch is None:
        return x, layer_norm(x, shift=shift, scale=scale)
    return gated_add_layer_norm(x, *branch, shift=shift, scale=scale)


class RMSNorm(nn.Module):
    """``g ∘ x / sqrt(mean x² + eps)`` over the last axis.

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
        return rms_norm(x, self.weight, eps=self.eps)
