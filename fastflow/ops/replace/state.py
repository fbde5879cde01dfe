"""The active contexts of ``replace_ops``, and the threads that each reaches."""

import threading
from dataclasses import dataclass, field
from typing import Any

from ..._torch import constant_when_traced, forward_mode_active, traced_by_autograd

LOCK = threading.RLock()
current_thread = threading.get_ident


@dataclass(eq=False)
class Entry:
    """One active context. A thread uses the latest that it entered itself, or else the latest that reaches it.

    backend: None for PyTorch's own functions.
    mode: active in the thread that entered.
    """

    backend: str | None
    mode: Any
    reaches_all_threads: bool = True
    owner: object = None
    thread: int = field(default_factory=current_thread)


entries: tuple[Entry, ...] = ()  # oldest first; replaced as a whole, under LOCK


@constant_when_traced
def active_backend() -> str | None:
    """Return the backend of this thread's replacements, or None where PyTorch's own functions should run."""
    thread, others = current_thread(), None
    for entry in reversed(entries):
        if entry.thread == thread:
            return entry.backend
        if others is None and entry.reaches_all_threads:
            others = entry
    return None if others is None else others.backend


def tangent_possible() -> bool:
    """Return True in forward mode, and where AOTAutograd traces, which enters forward mode unseen by Python."""
    return forward_mode_active() or traced_by_autograd()
