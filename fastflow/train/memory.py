"""Refuse a request that does not fit into memory, before anything is allocated."""

import contextlib
import math
import os
from pathlib import Path

import torch

_CPU = torch.device("cpu")


def check_memory(needed: int, request: str, device: torch.device = _CPU) -> None:
    """Raise a ValueError unless the device has this many bytes of free memory; ``request`` names what needs them."""
    free = _free_gpu_memory(device) if device.type == "cuda" else _free_memory()
    if needed > free:
        raise ValueError(f"{request} would need {_gib(needed)} of memory, and {_gib(free)} are free")


def _free_gpu_memory(device: torch.device) -> float:
    cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + cached


def _free_memory() -> float:
    """Return the bytes that this process may still allocate, infinity if that is unknown."""
    limits = [math.inf]
    try:
        pairs = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        limits += [1024.0 * int(pair[1]) for pair in pairs if pair[0] == "MemAvailable:"]
    except (OSError, ValueError):
        names = getattr(os, "sysconf_names", {})
        if "SC_PHYS_PAGES" in names and "SC_PAGE_SIZE" in names:
            limits.append(float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE"))
    with contextlib.suppress(OSError, ValueError):  # no such file, or the word "max"
        # page cache counts as used, so compare with a container's whole limit
        limits.append(float(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / 2**30:,.1f} GiB"
