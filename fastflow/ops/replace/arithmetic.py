"""Arithmetic of tensors with a tangent and tensors without, under torch.compile inside ``torch.func.jvp``.

PyTorch stands in for a missing tangent with a zero tensor without memory. Its arithmetic ties a compiled program to the
batch size, even in ``2 * x``, and Inductor reads it at address 0 (PyTorch 2.11 and 2.13). Here the tangent is written
out in those terms that exist.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import make_dual, unpack_dual

from ..._torch import innermost_is_jvp
from .._tangents import complete_tangents

Original = Callable[..., Any]
Replacement = Callable[..., Any]


def _sum(sign: int) -> Replacement:
    """Return the replacement for ``x + sign y``."""

    def replacement(original: Original, x: Any, y: Any, **options: Any) -> Any:
        (x_primal, tx), (y_primal, ty) = _unpacked(x), _unpacked(y)
        if (tx is None) == (ty is None):
            return original(x, y, **options)
        if options:
            return completed(original, x, y, **options)
        out = original(x_primal, y_primal)
        tangent = tx if tx is not None else ty if sign > 0 else -ty
        return make_dual(out, tangent.to(out.dtype).expand(out.shape))

    return replacement


def product(original: Original, x: Any, y: Any, **options: Any) -> Any:
    """Replace a function that is linear in x and in y."""
    (x_primal, tx), (y_primal, ty) = _unpacked(x), _unpacked(y)
    if (tx is None) == (ty is None):
        return original(x, y, **options)
    tangent = original(tx, y_primal, **options) if ty is None else original(x_primal, ty, **options)
    return make_dual(original(x_primal, y_primal, **options), tangent)


def quotient(original: Original, x: Any, y: Any, **options: Any) -> Any:
    """Replace ``x / y``, which is linear in x."""
    if _unpacked(y)[1] is None and not options:
        return product(original, x, y)
    return completed(original, x, y, **options)


def reflected_difference(original: Original, x: Tensor, y: Any) -> Tensor:
    """Replace the method for ``y - x``."""
    return _sum(-1)(operator.sub, y, x) if isinstance(y, Tensor) else original(x, y)


def reflected_quotient(original: Original, x: Tensor, y: Any) -> Any:
    """Replace the method for ``y / x``."""
    return product(operator.mul, x.reciprocal(), y)


def completed(original: Original, *args: Any, **options: Any) -> Any:
    """Call the function with a tangent for every tensor, of zeros where it has none, if any of them has one."""
    flat = [x for y in (*args, *options.values()) for x in (y if isinstance(y, (list, tuple)) else (y,))]
    tensors = [x for x in flat if isinstance(x, Tensor) and x.is_floating_point()]
    found = iter(complete_tangents(*tensors))

    def complete(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [complete(each) for each in x]
        return next(found) if isinstance(x, Tensor) and x.is_floating_point() else x

    return original(*map(complete, args), **{name: complete(x) for name, x in options.items()})


def _unpacked(x: Any) -> tuple[Any, Tensor | None]:
    return unpack_dual(x) if isinstance(x, Tensor) else (x, None)


def find(function: Any) -> Replacement | None:
    """Return what replaces a function of PyTorch where torch.compile traces a jvp, or None."""
    if not torch.compiler.is_compiling() or not innermost_is_jvp():
        return None
    return _REPLACEMENTS.get(function)


_TABLE: list[tuple[Replacement, tuple[str, ...]]] = [
    (_sum(1), ("add", "__add__", "__radd__")),
    (_sum(-1), ("sub", "__sub__", "subtract")),
    (reflected_difference, ("__rsub__",)),
    (product, ("mul", "__mul__", "__rmul__", "multiply", "matmul", "__matmul__", "bmm", "mm")),
    (quotient, ("div", "__div__", "__truediv__", "true_divide", "divide")),
    (reflected_quotient, ("__rdiv__", "__rtruediv__")),
    (completed, ("add_", "sub_", "mul_", "div_", "addcmul", "addcdiv", "addmm", "baddbmm", "lerp", "where")),
    (completed, ("maximum", "minimum", "cat", "concat", "concatenate", "stack", "hstack", "vstack", "group_norm")),
]
_REPLACEMENTS = {
    getattr(owner, name): replacement
    for replacement, names in _TABLE
    for name in names
    for owner in (torch.Tensor, torch, torch.nn.functional)
    if hasattr(owner, name)
}
