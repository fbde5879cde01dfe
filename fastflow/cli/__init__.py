"""The command line: ``fastflow train | sample | likelihood | doctor``."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from torch import Tensor

from ..ops.divergence import Method
from ..sampling.likelihood import LikelihoodSolver
from ..sampling.ode import Solver
from ..train.config import Config
from ..train.data import DataSpec
from ..train.extras import extra
from ..train.log import NonFiniteError


@dataclass(frozen=True)
class Sample:
    """Draw samples from a trained run, with the moving average of its weights."""

    run: Path
    """Folder of the run."""
    num: int = 64
    """Number of samples."""
    out: Path = Path("samples.png")
    """A .png picture, or an .npz file with the arrays x and y."""
    label: int | None = None
    """Class to draw, by its index; by default all classes in equal parts."""
    steps: int = 50
    """Solver steps."""
    solver: Solver = "heun"
    """Integrator."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 is the plain conditional model."""
    mode_guidance: float = 0.0
    """Weight of mode-seeking guidance; 1 draws samples toward the modes, 0 is the plain model."""
    seed: int = 0
    """Seed of the noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if self.out.suffix not in (".png", ".npz"):
            raise ValueError(f"out must end in .png or .npz, got {str(self.out)!r}")


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihood of a run's own data under its model, in nats and in bits per dimension."""

    run: Path
    """Folder of the run."""
    num: int = 1000
    """Number of data samples, drawn at random."""
    out: Path = Path("likelihood.png")
    """Picture of their distribution."""
    method: Method = "hutchinson"
    """Divergence: by random probes, or exact."""
    num_probes: int = 1
    """Number of probes."""
    steps: int = 100
    """Solver steps; dopri5 chooses its own."""
    solver: LikelihoodSolver = "heun"
    """Integrator; dopri5 needs torchdiffeq."""
    levels: int = 256
    """Values that a pixel can take: images get uniform noise of one level."""
    seed: int = 0
    """Seed of the choice of samples, the noise and the probes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""

    def __post_init__(self) -> None:
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if self.levels < 2:
            raise ValueError(f"levels must be at least 2, got {self.levels}")
        if self.out.suffix != ".png":
            raise ValueError(f"out must end in .png, got {str(self.out)!r}")


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices and the backend of every op, and check each op against its reference."""


Command = Config | Sample | Likelihood | Doctor


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; exits with status 2 and one line on stderr when the input is at fault."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        _run(_parse(arguments))
    except (ValueError, OSError, ModuleNotFoundError, NonFiniteError) as error:
        print(f"fastflow: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt:
        print("fastflow: interrupted; train --resume continues from the last checkpoint", file=sys.stderr)
        raise SystemExit(130) from None


def _parse(arguments: Sequence[str]) -> Command:
    if list(arguments) == ["doctor"]:
        return Doctor()  # where something is missing, the doctor must not need it
    tyro = extra("tyro")
    subcommand = tyro.conf.subcommand
    commands = (
        Annotated[Config, subcommand("train")]
        | Annotated[Sample, subcommand("sample")]
        | Annotated[Likelihood, subcommand("likelihood")]
        | Annotated[Doctor, subcommand("doctor")]
    )
    return tyro.cli(
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


def _run(command: Command) -> None:
    if isinstance(command, Doctor):
        if failed := importlib.import_module(".doctor", __package__).main():
            raise SystemExit(failed)
    elif isinstance(command, Sample):
        _sample(command)
    elif isinstance(command, Likelihood):
        _likelihood(command)
    else:
        _train(command)


def _train(config: Config) -> None:
    from ..train.loop import train

    for name, value in train(config).items():
        print(f"{name:20} {value:.4f}" if isinstance(value, float) else f"{name:20} {value}")
    print(f"{'samples':20} {config.out / 'samples.png'}")


def _sample(command: Sample) -> None:
    from ..train.plots import plot_samples
    from ..train.runs import choose_device, generate, load_run

    run = load_run(command.run, choose_device(command.device))
    y = _labels(command, run.spec)
    x = generate(
        run.model,
        run.spec,
        run.path,
        command.num,
        y,
        seed=command.seed,
        num_steps=command.steps,
        solver=command.solver,
        guidance=command.guidance,
        mode_guidance=command.mode_guidance,
    )
    command.out.parent.mkdir(parents=True, exist_ok=True)
    if command.out.suffix == ".png":
        plot_samples(command.out, run.spec, x, y)
    else:
        import numpy as np

        np.savez(command.out, x=x.numpy(), y=np.full(len(x), -1) if y is None else y.numpy())
    print(f"{command.num} samples of step {run.step}: {command.out}")


def _likelihood(command: Likelihood) -> None:
    from ..train.densities import data_densities
    from ..train.plots import plot_histogram
    from ..train.runs import choose_device, load_run

    run = load_run(command.run, choose_device(command.device))
    nats, bits, stderr = data_densities(
        run,
        command.num,
        method=command.method,
        num_probes=command.num_probes,
        num_steps=command.steps,
        solver=command.solver,
        levels=command.levels,
        seed=command.seed,
    )
    print(f"{'samples':20} {len(nats)} of {run.config.data}, at step {run.step}")
    for name, values in (("nats", nats), ("bits_per_dim", bits)):
        error = values.std(correction=min(1, len(values) - 1)) / len(values) ** 0.5
        print(f"{name:20} {values.mean():.4f} ± {error:.4f}")
    if stderr is not None:
        print(f"{'probe_error':20} {stderr.mean():.4f} nats a sample, of {command.num_probes} probes")
    command.out.parent.mkdir(parents=True, exist_ok=True)
    plot_histogram(command.out, bits, "bits per dimension")
    print(f"{'histogram':20} {command.out}")


def _labels(command: Sample, spec: DataSpec) -> Tensor | None:
    """Labels in class order, None for data without classes."""
    if command.label is None:
        return torch.arange(command.num) % spec.num_classes if spec.num_classes else None
    if not 0 <= command.label < spec.num_classes:
        wanted = f"a class 0 ... {spec.num_classes - 1}" if spec.num_classes else "left out: the data has no classes"
        raise ValueError(f"label must be {wanted}, got {command.label}")
    return torch.full((command.num,), command.label)


if __name__ == "__main__":
    main()
