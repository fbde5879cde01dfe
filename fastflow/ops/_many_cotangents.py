"""Announce that many cotangents will be pulled through the graph that is being recorded."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_announced = ContextVar("many_cotangents", default=False)


@contextmanager
def many_cotangents() -> Iterator[None]:
    """Record ops by their own Functions, whose backward takes many cotangents at once, and not by PyTorch's.

    Pull inside this context too: checkpointing records the graph once more there, and it must be the same graph.
    """
    token = _announced.set(True)
    try:
        yield
    finally:
        _announced.reset(token)


def many_cotangents_expected() -> bool:
    return _announced.get()
