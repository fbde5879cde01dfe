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

from ..._torch import transforms
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
        tangent: Any = tx if ty is None else ty if sign > 0 else -ty
        return make_dual(out, torch.zeros_like(out) + tangent.to(out.dtype))  # in the memory layout of out

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


def reflected_quotient(original: Original, x: Tensor, y: Any) -> Any:
    """Replace the method for ``y / x``."""
    return product(operator.mul, x.reciprocal(), y)


def joined(original: Original, tensors: Any, *args: Any, **options: Any) -> Any:
    """Replace a function that is linear in a sequence of tensors."""
    primals, tangents = zip(*map(_unpacked, tensors))
    if any(t is not None for t in tangents) != any(t is None for t in tangents):
        return original(tensors, *args, **options)
    given = [torch.zeros_like(x) if t is None else t for x, t in zip(primals, tangents)]
    return make_dual(original(primals, *args, **options), original(given, *args, **options))


def completed(original: Original, *args: Any, **options: Any) -> Any:
    """Call the function with a tangent for every tensor, of zeros where it has none, if any of them has one."""
    given = [*args, *options.values()]
    positions = [i for i, x in enumerate(given) if isinstance(x, Tensor) and x.is_floating_point()]
    for i, x in zip(positions, complete_tangents(*[given[i] for i in positions])):
        given[i] = x
    return original(*given[: len(args)], **dict(zip(options, given[len(args) :])))


def _unpacked(x: Any) -> tuple[Any, Tensor | None]:
    return unpack_dual(x) if isinstance(x, Tensor) else (x, None)


def find(function: Any) -> Replacement | None:
    """Return what replaces a function of PyTorch where torch.compile traces a jvp, or None."""
    if not torch.compiler.is_compiling() or transforms()[-1:] != ("Jvp",):
        return None
    if getattr(function, "__name__", None) in ("__rdiv__", "__rtruediv__"):  # Dynamo does not find these in a dict
        return reflected_quotient
    return _REPLACEMENTS.get(function)


_TABLE: list[tuple[Replacement, tuple[str, ...]]] = [
    (_sum(1), ("add", "__add__", "__radd__")),
    (_sum(-1), ("sub", "__sub__", "subtract")),
    (product, ("mul", "__mul__", "__rmul__", "multiply", "matmul", "__matmul__", "bmm", "mm")),
    (quotient, ("div", "__div__", "__truediv__", "true_divide", "divide")),
    (completed, ("add_", "sub_", "mul_", "div_", "addcmul", "addcdiv", "addmm", "baddbmm", "lerp", "where")),
    (completed, ("maximum", "minimum", "group_norm")),
    (joined, ("cat", "concat", "concatenate", "stack", "hstack", "vstack")),
]
_REPLACEMENTS = {
    getattr(owner, name): replacement
    for replacement, names in _TABLE
    for name in names
    for owner in (torch.Tensor, torch, torch.nn.functional)
    if hasattr(owner, name)
}
