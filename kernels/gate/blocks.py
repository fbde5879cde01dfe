"""Blocks of ``[G, M, D]`` that fit the cache, for ``aten.py``."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

_CPU_ELEMENTS = 1 << 18  # per block: 1 MiB in float32; smaller ones cost more in calls than they save in traffic
_GPU_ELEMENTS = 1 << 25


class Block(NamedTuple):
    """Whole groups, or rows of one group."""

    groups: slice
    rows: slice
    is_whole: bool  # all of them

    @property
    def is_first(self) -> bool:
        """True for the first block of its groups."""
        return bool(self.rows.start == 0)

    def of(self, x: Tensor) -> Tensor:
        """Slice x ``[G, 1 or M, D]``."""
        if self.is_whole:
            return x
        return x[self.groups] if x.shape[1] == 1 else x[self.groups, self.rows]

    def read(self, x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        if x is None:
            return None
        part = self.of(x)
        return part if part.dtype == dtype else part.to(dtype)

    def target(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return this block of x to write to, or scratch memory if x has another dtype: then call :meth:`store`."""
        return self.of(x) if x.dtype == dtype else torch.empty_like(self.of(x), dtype=dtype)

    def store(self, values: Tensor, x: Tensor) -> None:
        if x.dtype != values.dtype:
            self.of(x).copy_(values)


def blocks_of(x: Tensor) -> tuple[Block, ...]:
    """Cut x ``[G, M, D]`` into blocks, the rows of a group in order."""
    return _partition(*x.shape, _CPU_ELEMENTS if x.device.type == "cpu" else _GPU_ELEMENTS)


@functools.lru_cache(maxsize=256)
def _partition(num_groups: int, num_rows: int, width: int, budget: int) -> tuple[Block, ...]:
    if 0 in (num_groups, num_rows, width):
        return ()
    rows = min(num_rows, max(1, budget // width))
    groups = max(1, budget // (num_rows * width)) if rows == num_rows else 1
    return tuple(
        Block(slice(g, g + groups), slice(m, m + rows), groups >= num_groups and rows >= num_rows)
        for g in range(0, num_groups, groups)
        for m in range(0, num_rows, rows)
    )
