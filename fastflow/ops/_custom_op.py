"""Custom ops that can be called without the dispatcher, which costs as much as a small product."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_implementations: dict[Any, Callable[..., Any]] = {}


def custom_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    """``torch.library.custom_op`` of a function that mutates nothing, for :func:`call`."""

    def register(implementation: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(name, mutates_args=())(implementation)
        _implementations[op] = implementation
        return op

    return register


def call(op: Any, *args: Any) -> Any:
    """``op(*args)``, past the dispatcher where nothing maps or traces the arguments. For callers without a graph to
    record."""
    return (_implementations[op] if plain(*args) else op)(*args)


def plain(*args: Any) -> bool:
    """Whether the dispatcher would only pass these on: no transform or mode, no subclass, no zeros left unwritten."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    keys_of, plain_keys = torch._C._dispatch_keys, None
    for x in args:
        if isinstance(x, Tensor):
            plain_keys = plain_keys or _plain_keys(x.device.type)
            if keys_of(x) != plain_keys:
                return False
    return True


@functools.cache
def _plain_keys(device: str) -> torch._C.DispatchKeySet:
    with torch.inference_mode(False):
        return torch._C._dispatch_keys(torch.empty(0, device=device))
