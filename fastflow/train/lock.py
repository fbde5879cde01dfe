"""Lock the folder of a run, so that two trainings cannot write to it."""

import contextlib
import errno
import json
import os
import shlex
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from .errors import RunInUseError
from .files import naming

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_NAME = ".fastflow.lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)

_held: set[int] = set()


def _close_held() -> None:
    """Close the locks in a forked child, which would keep them after the death of its parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_held)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Create the folder if need be, and hold its lock; the kernel releases it however the process ends.

    Where the file system or the platform has no locks, warn and go on.

    Raises:
        RunInUseError: another training holds the lock; the message names it.
        OSError: the folder is not writable.
    """
    created = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / _NAME
    descriptor = _acquire(file)
    _held.add(descriptor)
    try:
        yield
    finally:
        if descriptor in _held:  # not in a forked child
            _held.remove(descriptor)
            with contextlib.suppress(OSError):
                file.unlink()
            os.close(descriptor)
            with contextlib.suppress(OSError):  # not empty
                for parent in created:
                    parent.rmdir()


def _acquire(file: Path) -> int:
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _flock(descriptor, file)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    with naming(file):
                        os.truncate(descriptor, 0)
                        os.write(descriptor, _description().encode())
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder deleted it between `open` and `flock`


def _flock(descriptor: int, file: Path) -> None:
    if fcntl is None:
        warnings.warn(f"{file.parent} cannot be locked on this platform", RuntimeWarning, stacklevel=2)
        return
    try:
        with naming(file):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunInUseError(f"{file.parent} is in use by another training{_holder(descriptor)}") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn(
            f"{file.parent} cannot be locked ({error.strerror}): start no second training in it",
            RuntimeWarning,
            stacklevel=2,
        )


def _description() -> str:
    return json.dumps(
        {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
            "command": shlex.join(sys.argv),
        }
    )


def _holder(descriptor: int) -> str:
    """Return who holds the lock, nothing if the holder has not written it yet."""
    try:
        holder = json.loads(os.pread(descriptor, 1 << 16, 0))
        return f": process {holder['pid']} on {holder['host']} since {holder['since']}: {holder['command']}"
    except (OSError, ValueError, KeyError, TypeError):
        return ""
