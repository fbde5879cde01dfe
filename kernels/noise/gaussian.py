"""Write standard normals to memory; ``GaussianNoise.materialize`` runs this on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from .._common.philox import gaussian_groups

_GROUPS = 512  # counters per program
_NUM_WARPS = 4


@triton.jit
def _gaussian_kernel(out_ptr, seed: tl.int64, offset: tl.int64, numel: tl.int64, GROUPS: tl.constexpr):
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)  # [G]
    element = group[:, None] * 4 + tl.arange(0, 4)[None, :]  # [G, 4]
    z = gaussian_groups(group, seed, offset)  # (1) to (3), [G, 4]
    tl.store(out_ptr + element, z.to(out_ptr.dtype.element_ty), mask=element < numel)


def gaussian(numel: int, seed: int, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return standard normals ``[numel]`` in dtype, equal to ``reference.gaussian`` to 1e-6."""
    out = torch.empty(numel, dtype=dtype, device=device)
    if numel:
        grid = (triton.cdiv(numel, 4 * _GROUPS),)
        with on_device(out):
            _gaussian_kernel[grid](out, seed, offset, numel, GROUPS=_GROUPS, num_warps=_NUM_WARPS)
    return out
