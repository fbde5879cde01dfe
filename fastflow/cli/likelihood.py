"""``fastflow likelihood``: measure how likely a run's data is under its model."""

from dataclasses import dataclass
from pathlib import Path

from ..ops.divergence import Method
from ..sampling.likelihood import LikelihoodSolver
from ..train.densities import data_densities
from ..train.plots import plot_histogram
from ..train.preflight import check_output_file
from ..train.runs import choose_device, load_run
from ..train.settings import COUNT, SEED, SOLVER_STEPS, Interval, check_settings

INTERVALS = {
    "num": COUNT,
    "num_probes": COUNT,
    "steps": SOLVER_STEPS,
    "levels": Interval(2, 1 << 16),  # fp32 keeps the noise that fills a finer level to no useful precision
    "seed": SEED,
}


@dataclass(frozen=True)
class Likelihood:
    """Compute the log-likelihood of a run's own data under its model, in nats and in bits per dimension."""

    run: Path
    """Folder of the run."""
    num: int = 1000
    """Number of data samples, chosen at random."""
    out: Path = Path("likelihood.png")
    """File to write the histogram to (.png)."""
    method: Method = "hutchinson"
    """Divergence: estimated with random probes (hutchinson or hutch++), or exact."""
    num_probes: int = 1
    """Number of probes."""
    steps: int = 100
    """Number of solver steps; dopri5 chooses its own."""
    solver: LikelihoodSolver = "heun"
    """ODE solver; dopri5 needs torchdiffeq."""
    levels: int = 256
    """Number of values a pixel can take. Images are dequantised with uniform noise one level wide."""
    seed: int = 0
    """Seed of the choice of samples, the noise and the probes."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is the GPU if there is one."""

    def __post_init__(self) -> None:
        check_settings(self, INTERVALS)
        if self.out.suffix != ".png":
            raise ValueError(f"out must end in .png, got {str(self.out)!r}")


def run(command: Likelihood) -> None:
    """Print the mean densities with their standard errors; write a histogram to ``command.out``."""
    device = choose_device(command.device)
    check_output_file(command.out)
    run = load_run(command.run, device)
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
        error = f" ± {values.std() / len(values) ** 0.5:.4f}" if len(values) > 1 else ", of one sample"
        print(f"{name:20} {values.mean():.4f}{error}")
    if stderr is not None:
        print(f"{'probe_error':20} {stderr.mean():.4f} nats a sample, of {command.num_probes} probes")
    command.out.parent.mkdir(parents=True, exist_ok=True)
    plot_histogram(command.out, bits, "bits per dimension")
    print(f"{'histogram':20} {command.out}")
