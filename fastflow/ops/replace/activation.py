"""Put replacements where PyTorch and its users look functions up, and the originals back.

Rebound functions serve PyTorch's own modules, backward passes and other threads, where no mode is active. The mode
serves models that imported a function by its name.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from ..._torch import push_function_mode_below, remove_function_mode
from . import arithmetic, state
from .state import Entry, active_backend
from .table import PLACES, REPLACEMENTS, Replacement


class Setting(NamedTuple):
    """An attribute and its value while the replacements are in place."""

    owner: Any
    name: str
    value: Any


class ReplacingMode(TorchFunctionMode):
    """Call the replacement of a function, however it was imported."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        replacement = REPLACEMENTS.get(func) or arithmetic.find(func)
        if replacement is None or active_backend() is None:
            return func(*args, **(kwargs or {}))
        return replacement(func, *args, **(kwargs or {}))


def enter(entry: Entry) -> None:
    with state.LOCK:
        if not state.entries:
            _rebind()
        state.entries = (*state.entries, entry)
    if entry.backend is not None:
        push_function_mode_below(entry.mode)


def leave(entry: Entry) -> None:
    """Undo :func:`enter`, in any order. Called from another thread, it leaves the mode on the stack, without effect."""
    remove_function_mode(entry.mode)
    with state.LOCK:
        state.entries = tuple(each for each in state.entries if each is not entry)
        if not state.entries:
            _restore()


@contextmanager
def in_this_thread(backend: str | None) -> Iterator[None]:
    """Use backend in this thread only, or PyTorch's own functions if it is None."""
    entry = Entry(backend, ReplacingMode(), reaches_all_threads=False)
    enter(entry)
    try:
        yield
    finally:
        leave(entry)


def _replaced(original: Callable[..., Any], replacement: Replacement) -> Callable[..., Any]:
    @functools.wraps(original)
    def function(*args: Any, **kwargs: Any) -> Any:
        if active_backend() is None:
            return original(*args, **kwargs)
        return replacement(original, *args, **kwargs)

    return function


def _start_with_mode(start: Callable[..., None]) -> Callable[..., None]:
    """Start threads with the mode; it has no effect once no context is active."""

    @functools.wraps(start)
    def function(thread: threading.Thread) -> None:
        if active_backend() is not None:
            thread.run = functools.partial(_run_with_mode, thread.run)  # type: ignore[method-assign]
        start(thread)

    return function


def _run_with_mode(run: Callable[[], None]) -> None:
    mode = ReplacingMode()
    push_function_mode_below(mode)
    try:
        run()
    finally:
        remove_function_mode(mode)


def _inlinable(function: Any) -> Any:
    """Return a copy, which torch.compile traces into: of the original it makes one opaque call."""
    copy = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return functools.update_wrapper(copy, function)


def _unflatten(x: torch.Tensor, dim: Any, sizes: Any) -> torch.Tensor:
    """Unflatten without ``super()``, which torch.compile cannot trace and multi-head attention reaches."""
    return torch.unflatten(x, dim, sizes)


SETTINGS = [
    *(Setting(place.owner, place.name, _replaced(place.original, place.replacement)) for place in PLACES),
    Setting(F, "multi_head_attention_forward", _inlinable(F.multi_head_attention_forward)),
    Setting(torch.Tensor, "unflatten", functools.wraps(torch.Tensor.unflatten)(_unflatten)),
    Setting(threading.Thread, "start", _start_with_mode(threading.Thread.start)),
]
_found: list[tuple[Setting, bool]] = []  # in the place of each setting, and whether the owner held it itself


def _rebind() -> None:
    for owner, name, value in SETTINGS:
        is_own = name in vars(owner)
        _found.append((Setting(owner, name, vars(owner).get(name)), is_own))
        setattr(owner, name, value)


def _restore() -> None:
    while _found:
        (owner, name, value), is_own = _found.pop()
        if is_own:
            setattr(owner, name, value)
        else:  # a method of a base class
            delattr(owner, name)
