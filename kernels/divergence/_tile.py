"""Code that both kernels share: the probes of a tile, in registers, and the grid.

Shapes: R rows (samples of one probe) of a tile, G groups of a row, L elements of a group.
"""

import torch
import triton
import triton.language as tl

from .._common.launch import Grid, grid
from .._common.philox import gaussian_groups, lanes, philox_words
from ..noise.domains import Domain

LANES = {"rademacher": 128, "gaussian": 4}  # elements of a counter: 128 bits, or four words
TYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_BITS = tl.constexpr(LANES["rademacher"])
_SIGNS, _NORMALS = tl.constexpr(Domain.SIGNS.bits), tl.constexpr(Domain.NORMAL_PROBES.bits)


@triton.jit
def probe_groups(group, seed, offset, DTYPE: tl.constexpr, L: tl.constexpr):
    """Return the probes of these groups, rounded to DTYPE, as fp32. group: int64 [R, G]; returns [R, G, L]."""
    if L == _BITS:
        w0, w1, w2, w3 = philox_words(group | _SIGNS, seed, offset)  # [R, G] each
        words = lanes(w0, w1, w2, w3)  # [R, G, 4]
        bits = (words[:, :, :, None] >> tl.arange(0, 32).to(tl.uint32)[None, None, None, :]) & 1  # [R, G, 4, 32]
        probe = tl.reshape(1.0 - 2.0 * bits.to(tl.float32), group.shape + (L,))
    else:
        probe = gaussian_groups(group | _NORMALS, seed, offset).to(DTYPE).to(tl.float32)
    return probe


def grid_over(num_rows: int, row_size: int, start: int, distribution: str) -> Grid:
    """Return the grid over ``[num_rows, row_size]`` elements of a stream, beginning with element ``start``."""
    L = LANES[distribution]
    shifted = start % L != 0 or (row_size % L != 0 and num_rows != 1)
    return grid(num_rows, row_size, L, shifted, groups=triton.cdiv(row_size + L - 1, L))


def constexprs(dtype: torch.dtype, distribution: str) -> dict[str, object]:
    return {"DTYPE": TYPES[dtype], "L": LANES[distribution]}
