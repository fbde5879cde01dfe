"""Predict the share of an H100's memory bandwidth that a kernel reaches, by Little's law.

A kernel streams: every program loads a tile (or one tile in each iteration), computes and stores. Three times bound an
iteration of the blocks that share an SM, in cycles:

* memory: their bytes at the SM's part of the bandwidth, CTAs (loaded + stored) / b.
* latency: the loads of one block come back after L, then its instructions are issued, L + issued / 4.
* pipes: the busiest pipe of the SM, CTAs times the cycles of the instruction budget.

L grows with the share s of the bandwidth that is in use, L0 + s (L1 - L0), so the prediction is the s that agrees with
itself. L0 is that of an idle H100, 479 cycles (arXiv:2402.13499, table of memory latencies). L1 follows by Little's law
from the bytes that must be in flight on an SM for the whole bandwidth, over b; NVIDIA's CUB gives 32 KiB for an H100
(tuning of ``DeviceTransform``).

share = memory time / the longest of the three × floor / counted bytes. It is the share of what a copy reaches: no
DRAM refresh, no row misses, no partial wave, no launch. Loads of one iteration are taken to be issued together, and
STAGES - 1 iterations ahead in a loop that the compiler pipelines, where the latency is spread over these iterations.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from bench.compiler.budget import CLOCK, HBM, SMS, predict

BYTES_PER_CYCLE = HBM / SMS / CLOCK
IN_FLIGHT = 32 << 10
IDLE_LATENCY, FULL_LATENCY = 479.0, IN_FLIGHT / BYTES_PER_CYCLE
SCHEDULERS = 4


class Bandwidth(NamedTuple):
    """in_flight: bytes that the loads of an SM's blocks keep in flight. bound: of memory, latency and the pipes."""

    ctas: int
    in_flight: int
    bound: str
    share: float


def bandwidth(kernel: Mapping[str, Any], budget: Mapping[str, Any], floor_share: float, stages: int = 1) -> Bandwidth:
    """Predict a kernel's share of the bandwidth.

    kernel: loaded, stored and burst of a program, in bytes (see ``moved.py``). budget: of its compile row.
    floor_share: the floor's bytes over those that are counted. stages: of a pipelined loop.
    """
    iterations = max(1, round(kernel["loaded"] / max(1, kernel["burst"]))) if budget["part"] == "loop" else 1
    moved = (kernel["loaded"] + kernel["stored"]) / iterations
    pipes = {pipe: cycles for pipe, cycles in predict(budget).cycles.items() if pipe not in ("HBM", "L2")}
    busiest = max(pipes, key=lambda pipe: pipes[pipe])
    ahead = max(1, stages - 1)
    issue = budget["issued"] / SCHEDULERS if stages == 1 else 0.0  # beside the loads of the iterations ahead
    memory, latency = budget["ctas"] * moved / BYTES_PER_CYCLE, IDLE_LATENCY / ahead + issue
    slope = (FULL_LATENCY - IDLE_LATENCY) / ahead
    shares = {
        "memory": 1.0,
        "latency": (math.sqrt(latency**2 + 4 * slope * memory) - latency)
        / (2 * slope),  # s (latency + s slope) = memory
        busiest: memory / max(1.0, budget["ctas"] * pipes[busiest]),
    }
    bound = min(shares, key=lambda name: shares[name])
    in_flight = round(budget["ctas"] * ahead * kernel["loaded"] / iterations)
    return Bandwidth(budget["ctas"], in_flight, bound, shares[bound] * floor_share)
