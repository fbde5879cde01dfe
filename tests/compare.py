"""Oracles in plain PyTorch and the comparisons every test uses."""

import torch
from torch import Tensor

from bench.harness.accuracy import share_of_budget as share_of_budget
from bench.harness.problems import math_attention as math_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where the ops' tests compute


def math_layer_norm(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``F.layer_norm`` over the last axis, written out."""
    y = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def relative_l2(actual: Tensor, expected: Tensor) -> float:
    """``‖actual − expected‖ / ‖expected‖`` in float64; absolute where the expectation is zero."""
    actual, expected = actual.detach().double(), expected.detach().double()
    error, size = torch.linalg.vector_norm(actual - expected), torch.linalg.vector_norm(expected)
    return (error / size if size > 0 else error).item()


def assert_close(actual: Tensor, expected: Tensor, tolerance: float, name: str = "") -> None:
    """Same shape, finite, and relative L2 distance at most ``tolerance``."""
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    assert actual.isfinite().all(), f"{name}: not finite"
    error = relative_l2(actual, expected)
    assert error <= tolerance, f"{name}: relative L2 error {error:.2e} > {tolerance:.0e}"


def tensors(tree: object) -> list[Tensor]:
    """The tensors of nested tuples and lists, in order."""
    return [tree] if isinstance(tree, Tensor) else [leaf for branch in tree for leaf in tensors(branch)]
