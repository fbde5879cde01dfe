"""Time a few rows of the tuning table if ``FASTFLOW_AUTOTUNE=1``: once per kernel and head dim, never per length."""

import os
from collections.abc import Callable, Hashable

import triton
from torch import Tensor

from .config import CONFIGS, Config

_fastest: dict[Hashable, Config] = {}


def tuned(config: Config, launch: Callable[[Config], None], x: Tensor, direction: str, key: Hashable) -> Config:
    """Return the fastest configuration for a direction, timed by running launch; config itself if tuning is off.

    The candidates are the table's rows for this direction at every width and architecture. key: the
    rest of the cache key besides device, dtype and direction; it must hold no sequence length or batch size.
    """
    if os.environ.get("FASTFLOW_AUTOTUNE", "0") != "1" or not x.is_cuda:
        return config
    key = (x.device, x.dtype, direction, key)
    if key not in _fastest:
        candidates = {config, *(row for (*_, name), row in CONFIGS.items() if name == direction)}
        _fastest[key] = min(candidates, key=lambda candidate: _milliseconds(candidate, launch))
    return _fastest[key]


def _milliseconds(config: Config, launch: Callable[[Config], None]) -> float:
    try:
        return triton.testing.do_bench(lambda: launch(config), warmup=5, rep=20)
    except triton.runtime.errors.OutOfResources:
        return float("inf")
