"""Error budgets that do not depend on scale, and an allocator that detects stray writes."""

import math

import torch
from torch import Tensor

GUARD = 512  # elements


def share_of_budget(actual: Tensor, truth: Tensor, baseline: Tensor, factor: float) -> float:
    """Return the error of ``actual`` over the allowed error; above 1, or NaN, is a fault.

    FlashAttention's criterion: ``factor`` times the error of PyTorch in the same dtype is allowed. Errors are largest
    absolute deviations. Four units of the dtype's resolution are added, for results where PyTorch is exact.

    Args:
        actual: the result to judge; NaN is returned if it is not finite or its shape is wrong.
        truth: the result in float64.
        baseline: PyTorch's result in the same dtype.
        factor: the number of times PyTorch's error that is allowed.
    """
    if actual.shape != truth.shape or not actual.isfinite().all():
        return math.nan
    largest = max(truth.abs().max().item(), 1e-3) if truth.numel() else 1e-3
    floor = 4 * torch.finfo(baseline.dtype).eps * largest
    error, allowed = (((x.double() - truth).abs().max().item() if x.numel() else 0.0) for x in (actual, baseline))
    return error / (factor * allowed + floor)


class GuardedAllocator:
    """A ``torch.empty`` that fills with NaN and surrounds every block with guard zones, to be checked afterwards."""

    def __init__(self) -> None:
        self.blocks: list[Tensor] = []

    def __call__(self, *shape, dtype=torch.float32, device="cpu") -> Tensor:
        shape = shape[0] if isinstance(shape[0], tuple) else shape  # torch.Size is one
        numel = torch.Size(shape).numel()
        block = torch.full((numel + 2 * GUARD,), torch.nan, dtype=dtype, device=device)
        self.blocks.append(block)
        return block[GUARD : GUARD + numel].view(shape)

    def check(self) -> None:
        for block in self.blocks:
            assert block[:GUARD].isnan().all(), "written before the beginning of an output"
            assert block[-GUARD:].isnan().all(), "written past the end of an output"
