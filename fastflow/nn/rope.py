"""Tables of the rotary position embedding on grids."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .._checks import check_count, check_number


def rope_table(
    sizes: int | Sequence[int],
    dim: int,
    *,
    base: float = 10000.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor]:
    """Return cos and sin of the angles ``p ω_i`` for :func:`fastflow.rope`, with ``ω_i = base^(−2i/d)``.

    On a grid of A axes each axis has its own pairs, ``i = 0 ... d/2 − 1`` with d = dim / A, in the order of the axes:
    the first d/2 pairs turn by the position p along the first axis, and so on.

    Args:
        sizes: the length of a sequence, or the sizes of a grid with up to three axes. Tokens are in row-major order,
            the last axis running fastest.
        dim: number of channels R that turn, a multiple of twice the number of axes.
        base: the longest wavelength is about ``2π base``.
        device, dtype: of the results; the angles are computed in float64.

    Returns:
        cos and sin, ``[N, dim / 2]`` each, N being the product of sizes.

    Raises:
        TypeError: sizes or dim is no int, or base is no number.
        ValueError: sizes has more than three axes or none, a size is below 1, or dim does not divide.

    Source: Su et al., RoFormer (2104.09864), eq. 15; a part of the channels per axis as in Lu et al., FiT (2402.12376).
    """
    axes = [check_count("sizes", n) for n in ([sizes] if isinstance(sizes, int) else sizes)]
    dim, base, num = check_count("dim", dim), check_number("base", base), len(axes)
    if not 1 <= num <= 3:
        raise ValueError(f"sizes must have one, two or three axes, got {num}")
    if dim % (2 * num):
        raise ValueError(f"dim must be a multiple of {2 * num} on {num} {'axes' if num > 1 else 'axis'}, got {dim}")
    per_axis = dim // (2 * num)
    omega = base ** (-torch.arange(per_axis, dtype=torch.float64) / per_axis)  # [d / 2]
    positions = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) for n in axes), indexing="ij")
    angles = torch.cat([p.flatten()[:, None] * omega for p in positions], dim=1)  # [N, R / 2]
    return angles.cos().to(device, dtype), angles.sin().to(device, dtype)
