"""Predict the share of an H100's memory bandwidth that a kernel reaches, by Little's law.

A kernel streams: every program loads a tile (or one tile in each iteration), computes and stores. Three times bound an
iteration of the blocks that share an SM, in cycles:

* memory: their bytes at the SM's part of the bandwidth, CTAs (loaded + stored) / b.
* latency: the loads of one block come back after L, then its instructions are issued, L + issued / 4.
* pipes: the busiest pipe of the SM, CTAs times the cycles of the instruction budget.

L is not the latency of an idle GPU but the one at full bandwidth. By Little's law that is the number of bytes that must
be in flight on an SM over b. NVIDIA's CUB (tuning of ``DeviceTransform``) gives 32 KiB for an H100.

share = memory time / the longest of the three × floor / counted bytes. It is the share of what a copy reaches: no
DRAM refresh, no row misses, no partial wave, no launch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.compiler.budget import CLOCK, HBM, SMS, predict

BYTES_PER_CYCLE = HBM / SMS / CLOCK
IN_FLIGHT = 32 << 10
LATENCY = IN_FLIGHT / BYTES_PER_CYCLE
SCHEDULERS = 4


class Bandwidth(NamedTuple):
    """in_flight: bytes that the loads of an SM's blocks keep in flight. bound: of memory, latency and the pipes."""

    ctas: int
    in_flight: int
    bound: str
    share: float


def bandwidth(kernel: Mapping[str, Any], budget: Mapping[str, Any], floor_share: float) -> Bandwidth:
    """Predict a kernel's share of the bandwidth.

    kernel: loaded, stored and burst of a program, in bytes (see ``moved.py``). budget: of its compile row.
    floor_share: the floor's bytes over those that are counted.
    """
    iterations = max(1, round(kernel["loaded"] / max(1, kernel["burst"]))) if budget["part"] == "loop" else 1
    moved = (kernel["loaded"] + kernel["stored"]) / iterations
    pipes = {pipe: cycles for pipe, cycles in predict(budget).cycles.items() if pipe not in ("HBM", "L2")}
    busiest = max(pipes, key=lambda pipe: pipes[pipe])
    times = {
        "memory": budget["ctas"] * moved / BYTES_PER_CYCLE,
        "latency": LATENCY + budget["issued"] / SCHEDULERS,
        busiest: budget["ctas"] * pipes[busiest],
    }
    bound = max(times, key=lambda name: times[name])
    in_flight = round(budget["ctas"] * kernel["loaded"] / iterations)
    return Bandwidth(budget["ctas"], in_flight, bound, times["memory"] / times[bound] * floor_share)
