"""Blocks of the score matrix for ``cpu.py``: heads and query rows whose scores fit the cache.

Shapes: M key heads of a block, R of its query rows, N of its keys. Rows are those of the G query heads of a key head,
one after the other: ``[B, Hq, Nq, D]`` is ``[B Hk, G Nq, D]``.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

_CPU_SCORES = 1 << 20  # scores per block: 4 MiB in float32
_GPU_SCORES = 1 << 25
_MIN_ROWS = 16


class Sum:
    """A sum of matmuls ``s X Y``, accumulated in ``out``. started: out already holds a part of the sum."""

    __slots__ = ("out", "started")

    def __init__(self, out: Tensor, started: bool = False) -> None:
        self.out, self.started = out, started

    def add(self, x: Tensor | None, y: Tensor | None, scale: float = 1.0) -> "Sum":
        """Add ``scale X Y``; None is zero."""
        if x is not None and y is not None:
            self.out.baddbmm_(x, y, beta=int(self.started), alpha=scale)
            self.started = True
        return self

    def total(self) -> Tensor:
        if not self.started:
            self.out.zero_()
            self.started = True
        return self.out


class Block(NamedTuple):
    """Key heads, query rows and the keys that those rows attend to.

    The rows are those of all groups, or of one group from its query ``first`` on.
    """

    heads: slice  # of B·Hk
    rows: slice  # of G·Nq
    keys: slice  # of Nk
    groups: slice  # of G
    first: int
    is_causal: bool
    is_first: bool  # the first block that adds to the sums of these keys
    shape: tuple[int, int, int]  # (M, R, N)
    size: int

    def at_rows(self, x: Tensor | None) -> Any:
        """Slice ``[B Hk, G Nq, D]`` to a view ``[M, R, D]``."""
        return None if x is None else _narrow(_narrow(x, 0, self.heads), 1, self.rows)

    def at_keys(self, x: Tensor | None) -> Any:
        """Slice ``[B Hk, Nk, D]`` to a view ``[M, N, D]``."""
        return None if x is None else _narrow(_narrow(x, 0, self.heads), 1, self.keys)

    def sum_at_keys(self, x: Tensor) -> Sum:
        """Return the sum, at these keys, over all rows that attend to them."""
        return Sum(self.at_keys(x), started=not self.is_first)

    def at_scores(self, x: Tensor | None) -> Any:
        """Slice ``[B Hk, G Nq, Nk]`` to a view ``[M, R, N]``."""
        return None if x is None else _narrow(self.at_rows(x), 2, self.keys)

    def over(self, memory: Tensor) -> Tensor:
        """View scratch memory as ``[M, R, N]``."""
        return _narrow(memory, 0, slice(0, self.size)).view(self.shape)

    def scores(self, q: Tensor, k: Tensor, mask: Tensor | None, scale: float, out: Tensor) -> Tensor:
        """Write ``s Q Kᵀ`` with mask to out. q ``[M, R, D]``, k ``[M, N, D]``, mask ``[B, Hk, G, Nq, Nk]``."""
        S = Sum(out).add(q, k.mT, scale).total()
        if not self.is_causal and mask is None:
            return S
        grouped = S.unflatten(1, (self.groups.stop - self.groups.start, -1))
        if self.is_causal and self.first < k.shape[1]:
            corner = grouped[..., self.first :]
            corner.masked_fill_(torch.ones(corner.shape[-2:], dtype=torch.bool, device=S.device).triu(1), -torch.inf)
        if mask is not None:
            queries = slice(self.first, self.first + grouped.shape[2])
            head = torch.arange(self.heads.start, self.heads.stop, device=mask.device)
            mask = mask[..., self.groups, queries, self.keys]
            mask = mask[head // mask.shape[1], head % mask.shape[1]]  # [M, G, R / G, N]
            if mask.dtype == torch.bool:
                grouped.masked_fill_(~mask, -torch.inf)
            else:
                grouped.add_(mask)
        return S


def blocks_of(q: Tensor, k: Tensor, is_causal: bool) -> tuple[Block, ...]:
    """Cut the scores of q ``[B, Hq, Nq, D]`` and k ``[B, Hk, Nk, D]`` into blocks; on a CPU, with a head per thread."""
    budget, together = (_CPU_SCORES, torch.get_num_threads()) if q.device.type == "cpu" else (_GPU_SCORES, 1)
    heads, groups = k.shape[0] * k.shape[1], q.shape[1] // k.shape[1]
    return _partition(heads, groups, q.shape[2], k.shape[2], is_causal, budget, together)


@functools.lru_cache(maxsize=256)
def _partition(
    num_heads: int, num_groups: int, num_queries: int, num_keys: int, is_causal: bool, budget: int, together: int
) -> tuple[Block, ...]:
    most = max(_MIN_ROWS, budget // (max(1, min(num_heads, together)) * num_keys))
    groups = num_groups if num_groups * num_queries <= most else 1
    queries = min(num_queries, most)
    heads = max(1, budget // max(1, groups * queries * num_keys))
    firsts = list(range(0, num_queries, queries)) if queries else []
    if is_causal:
        firsts.reverse()  # the last queries attend to the most keys: they start the sums
    blocks = []
    for head in range(0, num_heads, heads):
        for group in range(0, num_groups, groups):
            for first in firsts:
                last, last_head = min(first + queries, num_queries), min(head + heads, num_heads)
                start, num_rows = group * num_queries + first, (groups - 1) * num_queries + last - first
                seen = min(last, num_keys) if is_causal else num_keys
                shape = (last_head - head, num_rows, seen)
                blocks.append(
                    Block(
                        heads=slice(head, last_head),
                        rows=slice(start, start + num_rows),
                        keys=slice(0, seen),
                        groups=slice(group, group + groups),
                        first=first,
                        is_causal=is_causal,
                        is_first=group == 0 and first == firsts[0],
                        shape=shape,
                        size=math.prod(shape),
                    )
                )
    return tuple(blocks)


def scratch_for(blocks: Sequence[Block], like: Tensor, num: int) -> Sequence[Tensor]:
    """Allocate ``num`` score matrices that all blocks share: fresh pages cost as much as a matmul."""
    size = max((block.size for block in blocks), default=0)
    return like.new_empty(num, size).unbind()


def _narrow(x: Tensor, dim: int, part: slice) -> Tensor:
    size = part.stop - part.start
    return x if size == x.shape[dim] else x.narrow(dim, part.start, size)
