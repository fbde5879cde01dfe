"""Embeddings of the time and of patch positions for the DiT."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._dtypes import at_least_float32
from ..ops._tangents import complete_tangents
from ..ops.activation import silu
from ..ops.rope import rope
from .linear import Linear
from .rope import rope_table

_MAX_PERIOD = 10_000.0


class TimeEmbedding(nn.Module):
    """Sinusoidal embedding of the time and a two-layer MLP: ``MLP([cos(ω t), sin(ω t)])``.

    DiT uses frequencies from 1 down to 1/10,000 on time steps 0 ... 999. Here t is in [0, 1], so ω is ``time_scale``
    times larger: the embedding at t = k/1000 is DiT's at step k.

    Args:
        hidden_size: width D of the embedding.
        num_frequencies: number of frequencies ω.
        time_scale: factor of t.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers (2212.09748), section 3.2.
    """

    def __init__(self, hidden_size: int, num_frequencies: int = 128, time_scale: float = 1000.0) -> None:
        super().__init__()
        self.num_frequencies = num_frequencies
        self.time_scale = time_scale
        self.linear1 = Linear(2 * num_frequencies, hidden_size)
        self.linear2 = Linear(hidden_size, hidden_size)
        for layer in (self.linear1, self.linear2):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, t: Tensor) -> Tensor:
        """Map t ``[B]`` to ``[B, D]``."""
        t = t.to(at_least_float32(t))  # half precision cannot hold 1000 t
        k = torch.arange(self.num_frequencies, dtype=t.dtype, device=t.device)
        omega = self.time_scale * torch.exp(-math.log(_MAX_PERIOD) / self.num_frequencies * k)
        t, omega = complete_tangents(t, omega)  # else PyTorch's mul, compiled under a jvp, fixes the size of the batch
        angle = t[:, None] * omega
        waves = torch.cat((angle.cos(), angle.sin()), dim=1)
        return self.linear2(silu(self.linear1(waves.to(self.linear1.weight.dtype))))


class RotaryEmbedding(nn.Module):
    """Rotation of each head's queries or keys by their position in a grid, see :func:`rope_table`."""

    def __init__(self, sizes: Sequence[int], dim: int) -> None:
        super().__init__()
        for name, table in zip(("cos", "sin"), rope_table(sizes, dim)):
            self.register_buffer(name, table, persistent=False)  # [N, dim / 2]

    def forward(self, x: Tensor) -> Tensor:
        """Map x ``[B, H, N, D]`` to the same shape."""
        return rope(x, self.cos, self.sin)


def position_embedding(hidden_size: int, height: int, width: int) -> Tensor:
    """Return fixed sine-cosine positions of a grid, ``[height * width, hidden_size]``.

    Half of the channels encode the row, the other half the column.

    Raises:
        ValueError: hidden_size is not a multiple of 4.

    Source: Dosovitskiy et al. (2010.11929), in the two-dimensional form of He et al. (2111.06377).
    """
    if hidden_size % 4:
        raise ValueError(f"hidden_size must be a multiple of 4 for sine-cosine positions, got {hidden_size}")
    quarter = hidden_size // 4
    omega = _MAX_PERIOD ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row, column = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    angles = [axis.flatten()[:, None] * omega for axis in (row, column)]  # 2 x [H W, D / 4]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], dim=1).float()


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return ``x + y``; PyTorch's sum, compiled with a tangent on one of the two, fixes the size of the batch."""
    x, y = complete_tangents(x, y)
    return x + y
