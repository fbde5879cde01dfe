"""Standard normals written to memory: what ``GaussianNoise.materialize`` runs on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.philox import gaussian_groups

_GROUPS = 512  # counters a program
_NUM_WARPS = 4


@triton.jit
def _gaussian_kernel(out_ptr, seed: tl.int64, offset: tl.int64, numel: tl.int64, GROUPS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)  # [G]
    element = group[:, None] * 4 + tl.arange(0, 4)[None, :]  # [G, 4]
    z = gaussian_groups(group, seed, offset)
    tl.store(out_ptr + element, z.to(out_ptr.dtype.element_ty), mask=element < numel)


def gaussian(numel: int, seed: int, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Standard normals ``[numel]`` in dtype, the numbers of ``reference.gaussian``."""
    out = torch.empty(numel, dtype=dtype, device=device)
    if numel:
        grid = (triton.cdiv(numel, 4 * _GROUPS),)
        _gaussian_kernel[grid](out, seed, offset, numel, GROUPS=_GROUPS, num_warps=_NUM_WARPS)
    return out
