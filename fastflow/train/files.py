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


@contextlib.contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a path of the same suffix to write to, and move it to the file, or to the target of a link, at the end."""
    target = file.resolve()
    partial = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        with naming(partial):
            yield partial
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


def replace_text(file: Path, text: str) -> None:
    """Replace a file's content atomically."""
    with replacing(file) as partial:
        partial.write_text(text)


def remove(path: Path) -> None:
    """Delete a folder with its content, or a file if it exists; of a link, delete the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
