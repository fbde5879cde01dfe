"""The command line: ``fastflow train | sample | likelihood | doctor``."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NoReturn

import torch

from ..sampling.adaptive import IntegrationError
from ..train.config import Config
from ..train.errors import RunError
from ..train.extras import extra
from ..train.signals import Stopped
from . import doctor, likelihood, sample, train

Command = Config | sample.Sample | likelihood.Likelihood | doctor.Doctor

_PACKAGE = Path(__file__).parent.parent
_NO_MEMORY = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line.

    What the user can mend is one line on stderr and status 2. A signal that stops a training gives status 128 plus its
    number. Anything else is a bug, and keeps its traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        with _plain_warnings():
            _run(_parse(arguments))
        _flush_stdout()
    except Stopped as stopped:
        _exit(f"{stopped}; {train.how_to_go_on(stopped, arguments)}", 128 + stopped.number)
    except KeyboardInterrupt:
        _exit("interrupted; a training goes on from its last checkpoint, if it has one, with --resume", 130)
    except Exception as error:
        if (message := _message(error)) is None:
            _print_error("this is a bug; please report it with the traceback and what `fastflow doctor` prints")
            raise
        _exit(message, 2, error)


def _message(error: Exception) -> str | None:
    """Return the line to print if the user can do something about the error, else None."""
    text = " ".join(str(error).split())
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        type(error) is RuntimeError and any(words in text for words in _NO_MEMORY)
    ):
        return f"out of memory; use smaller batches, fewer samples or a smaller model ({text or 'no details'})"
    if isinstance(error, BrokenPipeError):
        return "stdout: the reader has closed the pipe"
    if isinstance(error, OSError) and error.filename is not None and error.strerror is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (ValueError, OSError, ModuleNotFoundError, RunError, IntegrationError)):
        return text
    return None


def _exit(message: str, status: int, cause: BaseException | None = None) -> NoReturn:
    _print_error(message)
    raise SystemExit(status) from cause


def _print_error(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"fastflow: {message}", file=sys.stderr, flush=True)


def _flush_stdout() -> None:
    """Report a full disk or a closed pipe here; at exit Python would print a traceback."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "stdout") from error


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print this package's warnings in one line, without the source."""
    original = warnings.formatwarning

    def plain(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        if Path(filename).is_relative_to(_PACKAGE):
            return f"fastflow: {message}\n"
        return original(message, category, filename, lineno, line)

    warnings.formatwarning = plain
    try:
        yield
    finally:
        warnings.formatwarning = original


def _parse(arguments: Sequence[str]) -> Command:
    if list(arguments) == ["doctor"]:
        return doctor.Doctor()  # without tyro, so that it runs on an incomplete installation
    tyro = extra("tyro")
    subcommand = tyro.conf.subcommand
    commands: Any = (
        Annotated[_unchecked(Config), subcommand("train")]
        | Annotated[_unchecked(sample.Sample), subcommand("sample")]
        | Annotated[_unchecked(likelihood.Likelihood), subcommand("likelihood")]
        | Annotated[doctor.Doctor, subcommand("doctor")]
    )
    command = tyro.cli(
        commands,
        prog="fastflow",
        description="Train flow-matching models fast, sample from them, and measure their likelihood.",
        args=arguments,
        config=(
            tyro.conf.PositionalRequiredArgs,
            tyro.conf.PositionalMetavarFromFieldName,
            tyro.conf.FlagCreatePairsOff,
        ),
    )
    return command if isinstance(command, doctor.Doctor) else type(command).mro()[1](**vars(command))


def _unchecked(command: type[Command]) -> Any:
    """Return the dataclass without its checks: tyro would wrap their messages in a box of several lines."""
    return type(command.__name__, (command,), {"__doc__": command.__doc__, "__post_init__": lambda self: None})


def _run(command: Command) -> None:
    if isinstance(command, Config):
        train.run(command)
    elif isinstance(command, sample.Sample):
        sample.run(command)
    elif isinstance(command, likelihood.Likelihood):
        likelihood.run(command)
    else:
        doctor.run()
