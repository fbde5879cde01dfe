"""Custom ops of this package, and a way to call them without the dispatcher, which costs as much as a small matmul."""

from collections.abc import Callable
from typing import Any

import torch

from .. import _torch
from ._flops import count_flops

NAMESPACE = __name__.partition(".ops.")[0].replace(".", "_")  # "fastflow"; another copy of the package has another

_implementations: dict[Any, Callable[..., Any]] = {}


def no_flops(*shapes: Any, **keywords: Any) -> int:
    return 0


def custom_op(
    name: str, schema: str | None = None, flops: Callable[..., int] = no_flops
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function that mutates nothing as the custom op ``name`` of this package, for :func:`call`.

    schema: ``"(Tensor x, float scale) -> Tensor"``; by default that of the function's annotations. flops: the formula
    for ``torch.utils.flop_counter``, which counts matmuls only.
    """

    def register(implementation: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(f"{NAMESPACE}::{name}", implementation, mutates_args=(), schema=schema)
        _implementations[op] = implementation
        count_flops(getattr(getattr(torch.ops, NAMESPACE), name), flops)
        return op

    return register


def call(op: Any, *args: Any) -> Any:
    """Return ``op(*args)``, without the dispatcher where it has nothing to do. The result has no graph."""
    return (_implementations[op] if _torch.can_skip_dispatcher(*args) else op)(*args)
