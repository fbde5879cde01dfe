"""Oracles in plain PyTorch and the comparisons every test uses."""

import math

import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # where the ops' tests compute


def math_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``softmax(s Q Kᵀ + bias) V`` written out, so that autograd gives every derivative; a fully masked row is zero."""
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, dim=-3) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * query @ key.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        attends = torch.ones_like(scores, dtype=torch.bool)
    elif attn_mask.dtype == torch.bool:
        attends = attn_mask.expand_as(scores)
    else:
        attends = (attn_mask > -torch.inf).expand_as(scores)
        scores = scores + attn_mask.masked_fill(attn_mask == -torch.inf, 0.0)
    scores = scores.masked_fill(~attends, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    return weights @ value / torch.where(total == 0, 1.0, total)


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


def share_of_budget(actual: Tensor, truth: Tensor, baseline: Tensor, factor: float) -> float:
    """FlashAttention's criterion, scale-free: the error over ``factor`` times that of PyTorch in the same dtype.

    actual: what is judged; truth: in float64; baseline: plain PyTorch's result. Errors are largest absolute deviations;
    four units of the dtype's resolution are granted where PyTorch is exact. Above 1, or NaN, is a fault.
    """
    if actual.shape != truth.shape or not actual.isfinite().all():
        return math.nan
    largest = max(truth.abs().max().item(), 1e-3) if truth.numel() else 1e-3
    floor = 4 * torch.finfo(baseline.dtype).eps * largest
    error, allowed = (((x.double() - truth).abs().max().item() if x.numel() else 0.0) for x in (actual, baseline))
    return error / (factor * allowed + floor)


def tensors(tree: object) -> list[Tensor]:
    """The tensors of nested tuples and lists, in order."""
    return [tree] if isinstance(tree, Tensor) else [leaf for branch in tree for leaf in tensors(branch)]
