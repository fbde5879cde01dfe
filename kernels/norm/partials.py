"""Add up partial sums of the gradients of scale and shift in a fixed order, without atomics: the same bits each run."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device

CHUNKS, COLUMNS, NUM_WARPS = 8, 256, 4  # of a tile


@triton.jit(do_not_specialize=["num_chunks"])
def _sum_partials_kernel(
    # one of each per gradient: fp32 [slots, chunks, D], and [slots, D]
    partial_ptrs, sum_ptrs, num_slots,
    num_chunks, D: tl.constexpr, CHUNKS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    blocks: tl.constexpr = (D + COLUMNS - 1) // COLUMNS
    slot = (tl.program_id(0) // blocks).to(tl.int64)
    cols = tl.program_id(0) % blocks * COLUMNS + tl.arange(0, COLUMNS)  # [C]
    for i in tl.static_range(len(partial_ptrs)):
        if (tl.program_id(1) == i) & (slot < num_slots[i]):
            total = tl.zeros([CHUNKS, COLUMNS], tl.float32)
            for start in range(0, num_chunks, CHUNKS):
                chunk = start + tl.arange(0, CHUNKS)
                offs = (slot * num_chunks + chunk)[:, None] * D + cols[None, :]
                mask = (chunk < num_chunks)[:, None] & (cols < D)[None, :]
                total += tl.load(partial_ptrs[i] + offs, mask=mask, other=0.0)
            sums = tl.sum(total, 0).to(sum_ptrs[i].dtype.element_ty)
            tl.store(sum_ptrs[i] + slot * D + cols, sums, mask=cols < D)


def sum_partials(partials: Sequence[Tensor], dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """Sum each of partials, fp32 ``[..., chunks, D]``, over its chunks to ``[..., 1, D]`` in the dtype given for it."""
    num_chunks, D = partials[0].shape[-2:]
    sums = [x.new_empty((*x.shape[:-2], 1, D), dtype=dtype) for x, dtype in zip(partials, dtypes, strict=True)]
    num_slots = tuple(x.shape[:-2].numel() for x in partials)
    grid = max(num_slots) * triton.cdiv(D, COLUMNS), len(partials)
    with on_device(partials[0]):
        _sum_partials_kernel[grid](
            tuple(partials), tuple(sums), num_slots, num_chunks, D=D, CHUNKS=CHUNKS, COLUMNS=COLUMNS,
            num_warps=NUM_WARPS,
        )  # fmt: skip
    return sums
