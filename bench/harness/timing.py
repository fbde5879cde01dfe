"""Time several ways in turn, A B B A, so that a drift of the machine affects all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

Seconds = dict[str, list[float]]
_L2_BYTES = 256 << 20  # more than the L2 cache of any GPU


class Percentiles(NamedTuple):
    """Milliseconds."""

    p20: float
    p50: float
    p80: float


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int = 30, warmup: int = 3) -> Seconds:
    """Return the seconds of each call by way and round: by CUDA events after an L2 flush on a GPU, else by the clock.

    Every other round runs in reverse order, so that no way gains from its position.
    """
    clock = _CudaClock() if torch.cuda.is_available() else _wall_clock
    seconds: Seconds = {name: [] for name in ways}
    for round_ in range(-warmup, rounds):
        for name, call in list(ways.items())[:: -1 if round_ % 2 else 1]:
            elapsed = clock(call)
            if round_ >= 0:
                seconds[name].append(elapsed)
    return seconds


def captured(call: Callable[[], object], warmup: int = 3) -> Callable[[], object]:
    """Capture ``call`` as a CUDA graph, whose time includes neither Python nor single launches."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(warmup):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = call()  # the graph writes into these tensors, so they must live as long as it does

    def replay() -> object:
        graph.replay()
        return kept

    return replay


def rounds_for(call: Callable[[], object], seconds: float, least: int = 5, most: int = 100) -> int:
    """Return the number of calls that fit into ``seconds``, clamped to ``[least, most]``; ``call`` must be warm."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return max(least, min(most, int(seconds / (time.perf_counter() - start))))


def percentiles(seconds: list[float]) -> Percentiles:
    cuts = statistics.quantiles(seconds, n=10, method="inclusive")
    return Percentiles(*(1e3 * s for s in (cuts[1], statistics.median(seconds), cuts[7])))


def ratio(seconds: Mapping[str, list[float]], of: str, to: str) -> float:
    """Return the median of ``of / to`` over the rounds; below 1 the first is faster."""
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[to], strict=True))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _wall_clock(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class _CudaClock:
    """Seconds on the GPU between two events, with the L2 cache flushed before the first."""

    def __init__(self) -> None:
        self.flushed = torch.empty(_L2_BYTES, dtype=torch.int8, device="cuda")
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))

    def __call__(self, call: Callable[[], object]) -> float:
        self.flushed.zero_()
        torch.cuda.synchronize()
        self.start.record()
        call()
        self.end.record()
        self.end.synchronize()
        return 1e-3 * self.start.elapsed_time(self.end)
