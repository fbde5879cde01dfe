"""``fastflow sample``: draw samples from a trained run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..sampling import Solver
from ..train.data import DataSpec
from ..train.files import replacing
from ..train.plots import check_picture, plot_samples
from ..train.preflight import check_guidance, check_output_file, check_samples
from ..train.runs import choose_device, generate, load_run
from ..train.settings import COUNT, GUIDANCE, SEED, SOLVER_STEPS, check_settings

INTERVALS = {
    "num": COUNT,
    "steps": SOLVER_STEPS,
    "guidance": GUIDANCE,
    "mode_guidance": GUIDANCE,
    "seed": SEED,
}


@dataclass(frozen=True)
class Sample:
    """Draw samples from a trained run, using the moving average of its weights."""

    run: Path
    """Folder of the run."""
    num: int = 64
    """Number of samples."""
    out: Path = Path("samples.png")
    """File to write: a .png picture, or an .npz file with the samples x and their labels y, -1 for data without any."""
    label: str | None = None
    """Class to draw, as the label file or the class folder calls it; by default all classes in equal parts."""
    steps: int = 50
    """Number of solver steps."""
    solver: Solver = "heun"
    """ODE solver."""
    guidance: float = 1.0
    """Classifier-free guidance scale; 1 means no guidance."""
    mode_guidance: float = 0.0
    """Weight of mode-seeking guidance, which draws samples toward the modes; 0 means none."""
    seed: int = 0
    """Seed of the noise."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is the GPU if there is one."""

    def __post_init__(self) -> None:
        check_settings(self, INTERVALS)
        if self.out.suffix not in (".png", ".npz"):
            raise ValueError(f"out must end in .png or .npz, got {str(self.out)!r}")


def run(command: Sample) -> None:
    """Draw the samples and write them to ``command.out``."""
    device = choose_device(command.device)
    check_output_file(command.out)
    run = load_run(command.run, device)
    check_guidance(command.guidance, run.spec, run.config.class_dropout, run.config.data)
    check_samples(command.num, run.spec, device)
    y = _labels(command, run.spec)
    if command.out.suffix == ".png":
        check_picture(run.spec, command.num, y)
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
        with replacing(command.out) as partial:
            np.savez(partial, x=x.numpy(), y=np.full(len(x), -1) if y is None else run.spec.labels(y))
    print(f"{command.num} samples of step {run.step}: {command.out}")


def _labels(command: Sample, spec: DataSpec) -> Tensor | None:
    """Return the class asked for, or all classes in turn; None for data without classes."""
    if command.label is None:
        return torch.arange(command.num) % spec.num_classes if spec.num_classes else None
    return torch.full((command.num,), spec.class_index(command.label))
