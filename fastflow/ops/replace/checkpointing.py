"""Make activation checkpointing recompute with the functions that the forward used.

A checkpoint made inside a context recomputes inside it, wherever and in whichever thread the backward runs. One that
was made outside recomputes with PyTorch's own functions, also if the backward runs inside.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ..._torch import checkpoint_places
from .activation import Setting, in_this_thread
from .state import active_backend


def settings() -> list[Setting]:
    """Return the attributes of ``torch.utils.checkpoint`` to replace, with their new values."""
    wrappers = {"generator": _generator, "forward": _forward, "backward": _backward, "hook": _hook}
    places = checkpoint_places()
    return [Setting(*places[role], wrapper(getattr(*places[role]))) for role, wrapper in wrappers.items()]


def _generator(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def generator(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return original(_reentering(function), *args, **kwargs)

    return generator


def _forward(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def forward(ctx: Any, function: Callable[..., Any], *args: Any) -> Any:
        return original(ctx, _reentering(function), *args)

    return staticmethod(forward)


def _backward(original: Callable[..., Any]) -> Any:
    @functools.wraps(original)
    def backward(ctx: Any, *grads: Any) -> Any:
        with in_this_thread(None):
            return original(ctx, *grads)

    return staticmethod(backward)


def _hook(original: Callable[..., Any]) -> Callable[..., Any]:
    @contextmanager
    def hook(*args: Any) -> Iterator[None]:
        with in_this_thread(None), original(*args):
            yield

    return hook


def _reentering(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with the replacements that are active now, whenever it runs."""
    backend = active_backend()

    def recompute(*args: Any, **kwargs: Any) -> Any:
        with in_this_thread(backend):
            return function(*args, **kwargs)

    return recompute
