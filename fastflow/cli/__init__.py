"""The command line: ``fastflow train | sample | likelihood | doctor``."""

import sys
from collections.abc import Sequence
from typing import Annotated, Any

from ..train.config import Config
from ..train.extras import extra
from ..train.log import NonFiniteError
from . import doctor, likelihood, sample, train

Command = Config | sample.Sample | likelihood.Likelihood | doctor.Doctor


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; on bad input, print one line to stderr and exit with status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _run(_parse(arguments))
    except (ValueError, OSError, ModuleNotFoundError, NonFiniteError) as error:
        print(f"fastflow: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("fastflow: interrupted; an interrupted train continues with --resume", file=sys.stderr)
        raise SystemExit(130) from None


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
