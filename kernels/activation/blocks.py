"""Walk elementwise functions over blocks of their tensors that fit the cache."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from .rows import as_rows

_CPU_BLOCK = 1 << 17  # elements: half of them already keep two of ATen's threads busy
_GPU_BLOCK = 1 << 25


def each_block(
    function: Callable[..., None], inputs: Sequence[Tensor | None], outputs: Sequence[Tensor | None], num_buffers: int
) -> None:
    """Call ``function(*inputs, *outputs, scratch)`` on each block; scratch: num_buffers tensors like the block.

    Inputs and outputs have one shape, or that shape behind an axis K, which is not cut. Outputs are contiguous. The
    blocks are at least in float32: those of 16-bit tensors are copies, and each result is rounded once.
    """
    given = [y for y in (*inputs, *outputs) if y is not None]
    if given[0].numel() == 0:
        return
    rows = as_rows((*inputs, *outputs), min(y.ndim for y in given))
    M, D = next(y for y in rows if y is not None).shape[-2:]
    most = _CPU_BLOCK if given[0].device.type == "cpu" else _GPU_BLOCK
    axis, length, size = (-1, D, min(D, most)) if M == 1 else (-2, M, min(M, max(1, most // D)))
    dtype, num_blocks = at_least_float32(*given), -(-length // size)
    shape = (num_buffers, M, size) if M == 1 else (num_buffers, size, D)
    scratch = torch.empty(shape, dtype=dtype, device=given[0].device)
    parts: list[Any] = [[None] * num_blocks if y is None else y.split(size, axis) for y in rows]
    parts.append([scratch.narrow(axis, 0, min(size, length - i * size)) for i in range(num_blocks)])
    num_inputs = len(inputs)
    for *block, buffers in zip(*parts):
        results = block[num_inputs:]
        wide = [y if y is None or y.dtype == dtype else y.to(dtype) for y in block[:num_inputs]]
        wide_results = [y if y is None or y.dtype == dtype else torch.empty_like(y, dtype=dtype) for y in results]
        function(*wide, *wide_results, buffers)
        for y, z in zip(results, wide_results):
            if y is not z:
                y.copy_(z)
