"""A small velocity network for points."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from .linear import Linear


class VelocityMLP(nn.Module):
    """Velocity ``v(x, t)`` of points by an MLP with SELU: dim + 1 → hidden_size (depth times) → dim.

    Args:
        dim: dimension D of the points.
        hidden_size: width of the hidden layers.
        depth: number of hidden layers.

    Source: the defaults are the network of Tong et al. (2302.00482), section 6.1.
    """

    num_classes = 0
    null_class = None

    def __init__(self, dim: int, hidden_size: int = 64, depth: int = 3) -> None:
        super().__init__()
        widths = [dim + 1] + depth * [hidden_size]
        hidden = [layer for pair in pairwise(widths) for layer in (Linear(*pair), nn.SELU())]
        self.dim = dim
        self.layers = nn.Sequential(*hidden, Linear(widths[-1], dim))

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the velocity at ``(x, t)``.

        Args:
            x: ``[B, D]``.
            t: ``[B]`` or a scalar tensor, in [0, 1].
            y: None; present so that all velocity networks have the same signature.

        Returns:
            ``[B, D]``.

        Raises:
            ValueError: a shape is wrong, or y is not None.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise ValueError(f"x must be [B, {self.dim}], got shape {tuple(x.shape)}")
        if t.ndim > 1 or t.shape not in ((), x.shape[:1]):
            raise ValueError(f"t must be a scalar or [{x.shape[0]}], got shape {tuple(t.shape)}")
        if y is not None:
            raise ValueError("y was given, but the model has no classes")
        return self.layers(torch.cat((x, t.to(x.dtype).expand(x.shape[0])[:, None]), dim=1))
