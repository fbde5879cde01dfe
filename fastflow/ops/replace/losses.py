"""Replacements for losses, and a reduction, whose tangents PyTorch gets wrong."""

from collections.abc import Callable
from typing import Any

from ..._torch import forward_mode_active, has_tangent_at_any_level

Original = Callable[..., Any]


def with_class_weights(original: Original, *args: Any, **options: Any) -> Any:
    """Replace ``F.cross_entropy`` and ``F.nll_loss``, which ignore the tangent of the weights of the classes."""
    if forward_mode_active():
        _refuse_tangent(options.get("weight", args[2] if len(args) > 2 else None))
    return original(*args, **options)


def linear_cross_entropy(original: Original, *args: Any, **options: Any) -> Any:
    """Replace ``F.linear_cross_entropy``, which has no tangent in chunks and ignores that of the class weights."""
    if forward_mode_active():
        _refuse_tangent(options.get("weight"))
        options = {**options, "options": None}
    return original(*args, **options)


def scatter_reduce(original: Original, *args: Any, **options: Any) -> Any:
    """Replace ``torch.scatter_reduce`` and the method, whose tangent is wrong for products."""
    if forward_mode_active() and options.get("reduce", args[4] if len(args) > 4 else None) == "prod":
        raise NotImplementedError(
            "scatter_reduce(reduce='prod') has a wrong tangent in PyTorch; write the product as the exponential of a "
            "sum of logarithms, or take it outside of forward mode"
        )
    return original(*args, **options)


def _refuse_tangent(weight: Any) -> None:
    if weight is not None and has_tangent_at_any_level(weight):
        raise NotImplementedError(
            "PyTorch ignores the tangent of the class weights of a cross-entropy; pass weight.detach() if their "
            "derivative is not wanted, or multiply the losses of reduction='none' by weight[target]"
        )
