"""Peak memory of one call, from the allocator: what it held at most beyond what was there before."""

from collections.abc import Callable

import torch
from torch.profiler import ProfilerActivity, profile


def peak_bytes(call: Callable[[], object]) -> int:
    """Of PyTorch's allocator, on the GPU where there is one; NumPy's and a compiler's own buffers are not seen."""
    call()  # caches are filled outside
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
    """The largest partial sum of allocations and, negative, releases."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as session:
        kept = call()
    del kept
    events = session.profiler.kineto_results.events()
    held = peak = 0
    for _, size in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += size
        peak = max(peak, held)
    return peak
