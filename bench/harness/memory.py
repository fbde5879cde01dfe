"""Peak memory of one call, counted by PyTorch's allocator beyond what was allocated before the call."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Return the peak bytes on the GPU, or on the CPU without one; buffers of NumPy or of a compiler do not count."""
    call()  # fills caches
    return _peak_cuda(call) if torch.cuda.is_available() else _peak_cpu(call)


def _peak_cuda(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call()
    torch.cuda.synchronize()
    del kept
    return torch.cuda.max_memory_allocated() - before


def _peak_cpu(call: Callable[[], object]) -> int:
    """Return the largest partial sum of allocations (positive) and releases (negative)."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as session:
        kept = call()
    del kept
    events = session.profiler.kineto_results.events()
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak
