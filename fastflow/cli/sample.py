"""``fastflow sample``: draw samples from a trained run."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..sampling import Solver
from ..train.data import DataSpec
from ..train.plots import plot_samples
from ..train.runs import choose_device, generate, load_run


@dataclass(frozen=True)
class Sample:
    """Draw samples from a trained run, using the moving average of its weights."""

    run: Path
    """Folder of the run."""
    num: int = 64
    """Number of samples."""
    out: Path = Path("samples.png")
    """File to write: a .png picture, or an .npz file with the arrays x and y."""
    label: int | None = None
    """Index of the class to draw; by default all classes in equal parts."""
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
        if self.num < 1:
            raise ValueError(f"num must be at least 1, got {self.num}")
        if self.out.suffix not in (".png", ".npz"):
            raise ValueError(f"out must end in .png or .npz, got {str(self.out)!r}")


def run(command: Sample) -> None:
    """Draw the samples and write them to ``command.out``."""
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
        np.savez(command.out, x=x.numpy(), y=np.full(len(x), -1) if y is None else y.numpy())
    print(f"{command.num} samples of step {run.step}: {command.out}")


def _labels(command: Sample, spec: DataSpec) -> Tensor | None:
    """Return the label asked for, or all classes in turn; None for data without classes."""
    if command.label is None:
        return torch.arange(command.num) % spec.num_classes if spec.num_classes else None
    if not 0 <= command.label < spec.num_classes:
        wanted = f"a class 0 ... {spec.num_classes - 1}" if spec.num_classes else "left out: the data has no classes"
        raise ValueError(f"label must be {wanted}, got {command.label}")
    return torch.full((command.num,), command.label)
