"""The settings of a training run."""

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..nn.dit import MLPKind
from ..nn.norm import NormKind
from ..paths import PathName
from ..sampling import Solver
from .settings import (
    COUNT,
    COUNT_OR_NONE,
    FRACTION,
    GUIDANCE,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    SOLVER_STEPS,
    Interval,
    check_settings,
)

# settings that may differ between a run and its continuation
_FREE_TO_CHANGE = (
    *("out", "resume", "overwrite", "steps"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "sample_every", "tensorboard"),
    *("sample_steps", "solver", "guidance", "eval_samples"),
)

ADDED: dict[str, Any] = {"norm": "layer", "rope": False, "mlp": "gelu"}  # settings newer than runs that still load

INTERVALS = {
    "image_size": Interval(1, 1 << 13),
    "seed": SEED,
    "steps": COUNT,
    "batch_size": Interval(1, 1 << 20),
    "learning_rate": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "beta2": FRACTION,
    "warmup_steps": COUNT_OR_NONE,
    "clip_norm": POSITIVE,
    "ema_decay": FRACTION,
    "sigma": NOT_NEGATIVE,
    "class_dropout": FRACTION,
    "hidden_size": Interval(1, 1 << 16),
    "depth": Interval(1, 1000),
    "num_heads": Interval(1, 1 << 10),
    "patch_size": Interval(1, 1 << 10),
    "log_every": COUNT,
    "checkpoint_every": COUNT,
    "keep_checkpoints": COUNT,
    "sample_every": COUNT_OR_NONE,
    "sample_steps": SOLVER_STEPS,
    "guidance": GUIDANCE,
    "eval_samples": COUNT_OR_NONE,
}


@dataclass(frozen=True)
class Config:
    """Train a flow-matching model and write samples, metrics and checkpoints to a folder.

    Images and latents are learned by a DiT, points by an MLP.
    """

    data: str = "digits"
    """Images: digits, mnist5k, or a folder of images, with one subfolder per class.
    Points: moons, eight_gaussians, s_curve, checkerboard, circles or swiss_roll.
    From a file: an .npy array of shape [N, C, H, W] or [N, D]; bytes with 1 or 3 channels are images, other arrays
    are latents or points in units of their own. Write ./digits for a folder that is called digits."""
    labels: Path | None = None
    """An .npy array of N integer labels, for data from an .npy array; the classes are the labels that occur."""
    image_size: int = 32
    """Side in pixels to which a folder's images are cropped and resized."""
    out: Path = Path("runs/latest")
    """Folder of the run."""
    resume: bool = False
    """Continue from the newest valid checkpoint in the folder, or start if there is none."""
    overwrite: bool = False
    """Delete an earlier run in the folder."""
    seed: int = 0
    """Seed of all randomness: the same settings give the same numbers, interrupted or not."""

    steps: int = 2000
    """Number of optimizer steps."""
    batch_size: int = 128
    """Samples per step."""
    learning_rate: float = 1e-3
    """Learning rate of AdamW after warm-up."""
    weight_decay: float = 0.0
    """Weight decay of AdamW."""
    beta2: float = 0.99
    """Second-moment decay of AdamW."""
    warmup_steps: int = 100
    """Steps of linear learning-rate warm-up."""
    clip_norm: float = 1.0
    """Maximum norm of the gradient."""
    ema_decay: float = 0.999
    """Decay of the moving average of the weights, which is used for sampling; it starts lower and rises to this."""
    path: PathName = "condot"
    """Probability path between noise and data."""
    sigma: float = 0.1
    """Width of the sigma_min, tube and bridge paths."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of training times."""
    class_dropout: float = 0.1
    """Fraction of labels dropped, for classifier-free guidance."""

    hidden_size: int | None = None
    """Width of the network; by default 96 for the DiT, 256 for the MLP."""
    depth: int | None = None
    """Number of blocks of the DiT, by default 4, or of hidden layers of the MLP, by default 3."""
    num_heads: int = 4
    """Number of attention heads of the DiT."""
    patch_size: int | None = None
    """Side of the DiT's patches; by default 2 for images of up to 16 pixels, else 4."""
    norm: NormKind = "layer"
    """Norm of the DiT's tokens: layer, or rms for RMS norm without weights."""
    qk_norm: bool = False
    """Apply RMS norm to queries and keys."""
    rope: bool = False
    """Rotate queries and keys by the position of their patch."""
    mlp: MLPKind = "gelu"
    """MLP of the DiT: gelu, or swiglu with as many parameters."""

    device: str = "auto"
    """auto, cpu, cuda or cuda:N; auto is the GPU if there is one."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast dtype; auto is bfloat16 on GPUs that support it."""
    compile: bool = False
    """Compile the network with torch.compile."""

    log_every: int = 50
    """Steps between writes to metrics.jsonl, which gets a row for every step."""
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always writes one."""
    keep_checkpoints: int = 3
    """Number of checkpoints to keep."""
    sample_every: int = 1000
    """Steps between pictures; 0 draws one at the end only."""
    tensorboard: bool = False
    """Also write TensorBoard events."""

    sample_steps: int = 16
    """Solver steps for pictures and metrics."""
    solver: Solver = "heun"
    """ODE solver for pictures and metrics."""
    guidance: float = 1.0
    """Classifier-free guidance scale for pictures and metrics; 1 means no guidance."""
    eval_samples: int | None = None
    """Samples for the final metrics; by default as many as real ones, at most 10,000 (points: 1,000); 0 for none."""

    def __post_init__(self) -> None:
        check_settings(self, INTERVALS)
        if os.fsencode(self.out).decode("utf-8", "replace") != str(self.out):  # safetensors reads no other path
            raise ValueError(f"out must be valid UTF-8, got {str(self.out)!r}")
        if self.resume and self.overwrite:
            raise ValueError("resume and overwrite exclude each other")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(self).items()}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Config":
        """Build a configuration from the values of :meth:`to_json`."""
        labels = values["labels"]
        return cls(**{**values, "out": Path(values["out"]), "labels": None if labels is None else Path(labels)})

    def check_continues(self, earlier: "Config") -> None:
        """Raise a ValueError unless a run with ``earlier`` can be continued with these settings bit for bit."""
        ours, theirs = self.to_json(), earlier.to_json()
        changed = [k for k in ours if k not in _FREE_TO_CHANGE and ours[k] != theirs[k]]
        if changed:
            pairs = ", ".join(f"{k} (was {json.dumps(theirs[k])}, now {json.dumps(ours[k])})" for k in changed)
            raise ValueError(f"the run in {earlier.out} cannot be resumed with other settings: {pairs}")
