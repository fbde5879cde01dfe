"""Timing two ways of doing one thing in turn, A B A B, so that a drifting machine moves both."""

import statistics
import time
from collections.abc import Callable, Mapping

import torch


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int = 30, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds a call, round by round, of every way."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(-warmup, rounds):
        for name, call in ways.items():
            synchronize()
            start = time.perf_counter()
            call()
            synchronize()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Mapping[str, list[float]], of: str, to: str) -> float:
    """Median over the rounds of ``of / to``: below 1, the first is faster."""
    return statistics.median(a / b for a, b in zip(seconds[of], seconds[to], strict=True))


def report(title: str, seconds: Mapping[str, list[float]], baseline: str) -> str:
    """A table row a way: median milliseconds, and how often as fast as the baseline."""
    rows = [
        f"  {name:<28} {1e3 * statistics.median(times):9.3f} ms   {1 / ratio(seconds, name, baseline):6.2f} x"
        for name, times in seconds.items()
    ]
    return "\n".join([title, *rows])


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
