"""The switch that puts replacements in place of PyTorch's functions, in models you cannot edit."""

import functools
import inspect
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from ..._backend import Backend
from ..._checks import check_choice
from . import checkpointing, state
from .activation import SETTINGS, ReplacingMode, enter, leave
from .state import Entry

F = TypeVar("F", bound=Callable[..., Any])

SETTINGS += checkpointing.settings()  # here, because checkpointing itself needs the contexts of activation


class replace_ops:  # noqa: N801
    """Make models you cannot edit right in every mode of differentiation, and fast.

    Attention becomes :func:`fastflow.attention`; where a tangent passes, linear layers, norms, GELU and SiLU become
    fastflow's, so that a jvp and the gradient through it compile with ``fullgraph=True``.
    Functions whose tangents, or gradients through tangents, PyTorch gets wrong are computed by formulas that are
    right: layer, batch and instance norm, weight norm, determinants, linear solves (``docs/derivatives.md`` lists all).
    Elsewhere PyTorch's own functions run.

    >>> with ff.replace_ops():
    ...     out, out_tangent = torch.func.jvp(model, (x,), (v,))

    A context manager, which can be nested and entered again, and a decorator of functions, methods and generators;
    :meth:`install` switches it on for the rest of the process. While a context is active in any thread, it acts in all
    threads of the process; a thread with a context of its own uses that one. A checkpoint recomputes with the functions
    that its forward used, wherever the backward runs.

    Args:
        backend: as for :func:`fastflow.attention`.

    Raises:
        ValueError: backend is unknown.
        TypeError: it decorates a class or an asynchronous generator.
    """

    def __init__(self, backend: str = "auto") -> None:
        if callable(backend):
            raise TypeError("replace_ops takes a backend, not a function: write @replace_ops()")
        check_choice("backend", backend, Backend)
        self.backend = backend

    def __enter__(self) -> "replace_ops":
        enter(Entry(self.backend, ReplacingMode(), owner=self))
        return self

    def __exit__(self, *error: object) -> None:
        mine = [entry for entry in state.entries if entry.owner is self]
        entered_here = [entry for entry in mine if entry.thread == state.current_thread()]
        leave((entered_here or mine)[-1])

    def __call__(self, function: F) -> F:
        if isinstance(function, type) or inspect.isasyncgenfunction(function):
            raise TypeError(f"replace_ops decorates functions and methods, got {function!r}")
        if inspect.isgeneratorfunction(function):
            wrapped = self._generator(function)
        elif inspect.iscoroutinefunction(function):

            async def wrapped(*args: Any, **kwargs: Any) -> Any:
                with replace_ops(self.backend):
                    return await function(*args, **kwargs)
        else:

            def wrapped(*args: Any, **kwargs: Any) -> Any:
                with replace_ops(self.backend):
                    return function(*args, **kwargs)

        return functools.wraps(function, updated=())(wrapped)  # type: ignore[return-value]

    def _generator(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Run the generator's body inside a context, and its caller outside."""

        def wrapped(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
            generator = function(*args, **kwargs)
            resume: Callable[[], Any] = functools.partial(next, generator)
            try:
                while True:
                    with replace_ops(self.backend):
                        value = resume()
                    try:
                        resume = functools.partial(generator.send, (yield value))
                    except GeneratorExit:
                        with replace_ops(self.backend):
                            generator.close()
                        raise
                    except BaseException as error:
                        resume = functools.partial(generator.throw, error)
            except StopIteration as stop:
                return stop.value

        return wrapped

    @staticmethod
    def install(backend: str = "auto") -> None:
        """Switch the replacements on for the whole process; a second call changes the backend."""
        check_choice("backend", backend, Backend)
        with state.LOCK:
            replace_ops.uninstall()
            enter(Entry(backend, ReplacingMode(), owner=replace_ops))

    @staticmethod
    def uninstall() -> None:
        """Undo :meth:`install`; contexts that are active stay so."""
        for entry in state.entries:
            if entry.owner is replace_ops:
                leave(entry)


replace_sdpa = replace_ops
