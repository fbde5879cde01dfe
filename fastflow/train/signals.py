"""Stop a training on a signal, with a checkpoint."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1")  # Windows lacks the last two


class Stopped(BaseException):
    """Raised when a signal has stopped a training; like KeyboardInterrupt, not an Exception.

    Args:
        number: the signal.
        where: how far the training came.
        checkpoint: the checkpoint to continue from, None if there is none yet.
    """

    def __init__(self, number: int, where: str, checkpoint: Path | None = None) -> None:
        saved = f"; checkpoint: {checkpoint}" if checkpoint else ""
        super().__init__(f"stopped by {signal.Signals(number).name} {where}{saved}")
        self.number = number
        self.checkpoint = checkpoint


class StopSignals:
    """Catch SIGINT, SIGTERM, SIGHUP and SIGUSR1 inside a ``with`` block, for :func:`fastflow.train.train`.

    The first signal is remembered in ``received``, or raises :class:`Stopped` inside :meth:`at_once`. The second one
    has its default effect, and so ends the process at once. On exit all handlers are restored.

    A signal that is ignored (as SIGHUP under nohup) or that has a handler of its own is left alone. Outside the main
    thread, where Python cannot handle signals, nothing is caught.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._at_once: tuple[str, Path | None] | None = None
        self._process = os.getpid()
        self._earlier: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in (getattr(signal, name) for name in NAMES if hasattr(signal, name)):
                if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                    self._earlier[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
        self._earlier.clear()

    @contextlib.contextmanager
    def at_once(self, where: str, checkpoint: Path | None = None) -> Iterator[None]:
        """Let a signal end the block at once with :class:`Stopped`; for work that changes no state."""
        self._at_once = (where, checkpoint)
        try:
            if self.received is not None:
                raise Stopped(self.received, where, checkpoint)
            yield
        finally:
            self._at_once = None

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self.received is not None or os.getpid() != self._process:  # the second one, or one for a forked child
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.received = number
        if self._at_once is not None:
            raise Stopped(number, *self._at_once)
        _write_to_stderr(
            f"fastflow: {signal.Signals(number).name}: finishing the step; a second signal stops at once\n"
        )


def _write_to_stderr(text: str) -> None:
    """Write without Python's buffers, which the handler may have interrupted; the terminal may be gone."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        start = "\n" if sys.stderr.isatty() else ""  # after the progress bar
        os.write(sys.stderr.fileno(), (start + text).encode())
