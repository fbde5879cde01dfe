"""Write and delete files so that a crash never leaves half of one, and so that an error names the file."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the path to an OSError that names no file, such as one raised by ``write`` or ``fsync``."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def replace_text(file: Path, text: str) -> None:
    """Replace a file's content atomically; if the file is a link, replace its target."""
    target = file.resolve()
    partial = target.with_name(f".{target.name}.partial")
    try:
        with naming(partial):
            partial.write_text(text)
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def remove(path: Path) -> None:
    """Delete a folder with its content, or a file if it exists; of a link, delete the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
