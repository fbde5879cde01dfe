"""Every setting of a training run."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..paths import PathName
from ..sampling import Solver

# what may differ between a run and its continuation
_FREE_TO_CHANGE = (
    *("out", "resume", "overwrite", "steps"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "sample_every", "tensorboard"),
    *("sample_steps", "solver", "guidance", "eval_samples"),
)


@dataclass(frozen=True)
class Config:
    """Train a flow-matching model and write samples, metrics and checkpoints to a folder.

    Images and latents are learned by a DiT, points by an MLP. Given the same settings, machine and library versions, a
    run gives the same numbers bit for bit, interrupted or not (on a GPU, as far as its kernels are deterministic).
    """

    data: str = "digits"
    """digits or mnist5k (images); moons, eight_gaussians, s_curve, checkerboard, circles or swiss_roll (points);
    a folder of images, one subfolder a class; or an .npy array of shape [N, C, H, W] or [N, D]."""
    labels: Path | None = None
    """An .npy array of N integer labels, for data in an .npy array."""
    image_size: int = 32
    """Side to which a folder's images are cropped and resized."""
    out: Path = Path("runs/latest")
    """Folder of the run."""
    resume: bool = False
    """Continue from the newest valid checkpoint in the folder, or start if there is none yet."""
    overwrite: bool = False
    """Delete a run that the folder holds."""
    seed: int = 0
    """All randomness is a function of this and the step."""

    steps: int = 2000
    """Optimizer steps."""
    batch_size: int = 128
    """Samples a step."""
    learning_rate: float = 1e-3
    """AdamW's step size after warm-up."""
    weight_decay: float = 0.0
    """AdamW's weight decay."""
    beta2: float = 0.99
    """AdamW's second-moment decay."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, which is what samples. It starts lower and rises with the step."""
    path: PathName = "condot"
    """Probability path between noise and data."""
    sigma: float = 0.1
    """Width of the sigma_min, tube and bridge paths."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of training times."""
    class_dropout: float = 0.1
    """Fraction of labels dropped, which classifier-free guidance needs."""

    hidden_size: int | None = None
    """Width of the network (DiT 96, MLP 256)."""
    depth: int | None = None
    """Blocks of the DiT (4) or hidden layers of the MLP (3)."""
    num_heads: int = 4
    """Attention heads of the DiT."""
    patch_size: int | None = None
    """Side of the DiT's patches (2 for images of up to 16 pixels, else 4)."""
    qk_norm: bool = False
    """RMS-normalise queries and keys."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast type; auto is bfloat16 on a GPU that has it."""
    compile: bool = False
    """Run the network through torch.compile."""

    log_every: int = 50
    """Steps between writes to metrics.jsonl, which has a row for every step."""
    checkpoint_every: int = 500
    """Steps between checkpoints; there is always one at the end."""
    keep_checkpoints: int = 3
    """Number of newest checkpoints kept."""
    sample_every: int = 1000
    """Steps between pictures; 0 for the end only."""
    tensorboard: bool = False
    """Write TensorBoard events as well."""

    sample_steps: int = 16
    """Solver steps for pictures and metrics."""
    solver: Solver = "heun"
    """Solver for pictures and metrics."""
    guidance: float = 1.0
    """Classifier-free guidance scale for pictures and metrics."""
    eval_samples: int | None = None
    """Samples for the final metrics (as many as real ones, at most 10,000; points 1,000); 0 for no metrics."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "sample_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "clip_norm"):
            if not getattr(self, name) > 0.0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        for name in ("ema_decay", "class_dropout", "beta2"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        for name in ("seed", "warmup_steps", "sample_every", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """The inverse of :meth:`to_json`."""
        labels = values["labels"]
        return cls(**{**values, "out": Path(values["out"]), "labels": None if labels is None else Path(labels)})

    def check_continues(self, earlier: "Config") -> None:
        """Raise a ValueError if a run with ``earlier`` cannot be continued with these settings bit for bit."""
        ours, theirs = self.to_json(), earlier.to_json()
        changed = [k for k in ours if k not in _FREE_TO_CHANGE and ours[k] != theirs[k]]
        if changed:
            pairs = ", ".join(f"{k} (was {json.dumps(theirs[k])}, now {json.dumps(ours[k])})" for k in changed)
            raise ValueError(f"the run in {earlier.out} cannot be resumed with other settings: {pairs}")
