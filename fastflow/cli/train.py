"""``fastflow train``: train a model and print the summary."""

import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ..train.config import Config
from ..train.loop import train
from ..train.signals import Stopped, StopSignals


def run(config: Config) -> None:
    """Train as configured; print the summary, a value a line."""
    with StopSignals() as stop:
        summary = train(config, stop)
    for name, value in summary.items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    print(f"{'samples':20} {config.out / 'samples.png'}")


def how_to_go_on(stopped: Stopped, arguments: Sequence[str]) -> str:
    """Return the command that continues a stopped training, or starts it again if it has no checkpoint."""
    if stopped.checkpoint is not None:
        arguments = [*(a for a in arguments if a not in ("--resume", "--overwrite")), "--resume"]
    return f"to go on: {shlex.join([*_program(), *arguments])}"


def _program() -> list[str]:
    """Return how this program was started."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return [_short(sys.executable), "-m", "fastflow"]
    return [_short(sys.argv[0])] if program.stem == "fastflow" else ["fastflow"]


def _short(program: str) -> str:
    name = Path(program).name
    return name if shutil.which(name) == program else program
