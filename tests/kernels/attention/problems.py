"""Attention problems for the kernels, their oracle, and the accuracy that is demanded."""

from torch import Tensor

from bench.harness.accuracy import GuardedAllocator as GuardedAllocator
from bench.harness.accuracy import share_of_budget
from bench.harness.problems import Problem as Problem
from bench.harness.problems import oracle as oracle


def assert_accurate(actual: Tensor, truth: Tensor, baseline: Tensor, factor: float, name: str) -> None:
    """FlashAttention's criterion: at most factor times the error of PyTorch in the same dtype."""
    assert actual.shape == truth.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(truth.shape)}"
    assert actual.isfinite().all(), f"{name}: not finite"
    share = share_of_budget(actual, truth, baseline, factor)
    assert share <= 1, f"{name}: {share:.2f} times the error that is allowed"
