"""Write standard normals to memory; ``GaussianNoise.materialize`` runs this on a GPU."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from .._common.philox import gaussian_groups
from .domains import Domain

_LANES = 4  # elements of a group: the four words of a counter
_GROUPS = 512  # counters per program
_NUM_WARPS = 4


@triton.jit(do_not_specialize=["seed", "offset", "first_group", "skipped", "numel"])
def _gaussian_kernel(
    out_ptr, seed: tl.int64, offset: tl.int64, first_group: tl.int64, skipped: tl.int32, numel: tl.int64,
    GROUPS: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """Write ``[numel]``. SHIFTED: it begins inside the first group, of which ``skipped`` elements are left out."""
    group = tl.program_id(0).to(tl.int64) * GROUPS + tl.arange(0, GROUPS)  # [G]
    element = group[:, None] * 4 + tl.arange(0, 4)[None, :]  # [G, 4]
    if SHIFTED:
        element -= skipped
    z = gaussian_groups(first_group + group, seed, offset)  # (1) to (3), [G, 4]
    mask = (element >= 0) & (element < numel) if SHIFTED else element < numel
    tl.store(out_ptr + element, z.to(out_ptr.dtype.element_ty), mask=mask)


def gaussian(
    numel: int,
    seed: int,
    offset: int,
    dtype: torch.dtype,
    device: torch.device,
    start: int = 0,
    domain: Domain = Domain.NOISE,
) -> Tensor:
    """Return normals, elements ``start ...``, ``[numel]`` in dtype, equal to ``reference.gaussian`` to 1e-6."""
    out = torch.empty(numel, dtype=dtype, device=device)
    if numel:
        first, skipped = divmod(start, _LANES)
        grid = (triton.cdiv(skipped + numel, _LANES * _GROUPS),)
        with on_device(out):
            _gaussian_kernel[grid](
                out, seed, offset, domain.bits + first, skipped, numel,
                GROUPS=_GROUPS, SHIFTED=skipped != 0, num_warps=_NUM_WARPS,
            )  # fmt: skip
    return out
