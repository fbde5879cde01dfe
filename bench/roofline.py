"""How fast a thing could be: its floor in FLOPs and bytes, and the roofs of this machine, measured in the same run."""

import functools
from dataclasses import dataclass

import torch

from bench._timing import interleaved, percentiles


@dataclass(frozen=True)
class Floor:
    """What no implementation can avoid. flops: multiplications and additions of matrix products, or of arithmetic where
    there are none. bytes: inputs read once, outputs written once."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Roof:
    """Measured, not published: the fastest large copy and the fastest large matrix product of one dtype."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, floor: Floor) -> float:
        """The shortest time that the roofs leave."""
        return max(floor.flops / self.flops_per_second, floor.bytes / self.bytes_per_second)

    def binds(self, floor: Floor) -> str:
        """Which roof: ``"flops"`` or ``"bytes"``."""
        memory = floor.bytes / self.bytes_per_second
        return "flops" if floor.flops / self.flops_per_second > memory else "bytes"


@functools.cache
def roof(dtype: torch.dtype) -> Roof:
    """The roofs of the GPU, or without one of this CPU at its present number of threads."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    n, copied = (8192, 1 << 30) if cuda else (1024, 1 << 27)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source, target = torch.randn(2, copied // 4, device=device)
    ways = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
    best = {name: percentiles(s).p20 / 1e3 for name, s in interleaved(ways, rounds=20).items()}
    return Roof(flops_per_second=2 * n**3 / best["product"], bytes_per_second=2 * copied / best["copy"])
