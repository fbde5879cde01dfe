"""Build the network of a run, load a trained one, and draw samples from it."""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import paths
from ..nn import DiT, VelocityMLP
from ..ops.random import GaussianNoise
from ..sampling import Solver, Velocity, classifier_free_guidance, sample_ode
from .checkpoint import Checkpoint, restore_newest
from .config import ADDED, Config
from .data import DataSpec
from .errors import DamagedCheckpointError, NonFiniteError, UnsupportedCheckpointError
from .purposes import Purpose, seeded_initialisation

Model = DiT | VelocityMLP

SAMPLES_TOGETHER = 512  # in one batch through the network


@dataclass(frozen=True)
class Run:
    """A trained model with all that is needed to sample; the weights are their moving average."""

    config: Config
    spec: DataSpec
    path: paths.Path
    model: Model
    step: int


def build_model(config: Config, spec: DataSpec) -> Model:
    """Build the network for this data, with weights drawn from the seed."""
    with seeded_initialisation(config.seed):
        if spec.kind == "points":
            return VelocityMLP(spec.shape[0], config.hidden_size or 256, config.depth or 3)
        channels, height, width = spec.shape
        return DiT(
            input_size=(height, width),
            patch_size=config.patch_size or (2 if max(height, width) <= 16 else 4),
            in_channels=channels,
            hidden_size=config.hidden_size or 96,
            depth=config.depth or 4,
            num_heads=config.num_heads,
            num_classes=spec.num_classes,
            class_dropout=config.class_dropout,
            qk_norm=config.qk_norm,
            norm=config.norm,
            rope=config.rope,
            mlp=config.mlp,
        )


def build_path(config: Config) -> paths.Path:
    """Build the probability path that ``Config.path`` names."""
    return paths.build(config.path, sigma=config.sigma)


def choose_device(name: str) -> torch.device:
    """Return torch's device of this name; ``"auto"`` is the GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if re.fullmatch(r"cpu|cuda(:\d{1,2})?", name, re.ASCII) is None:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, and there is no GPU that this PyTorch can use")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device {name!r} was asked for, and there are {torch.cuda.device_count()} GPUs, from cuda:0")
    return device


def load_run(folder: Path | str, device: torch.device | str = "cpu") -> Run:
    """Load the newest valid checkpoint of a run, ready to sample.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        DamagedCheckpointError: every checkpoint is damaged.
        UnsupportedCheckpointError: the newest undamaged one was written by another version.
    """
    run = restore_newest(Path(folder) / "checkpoints", _restore)
    if run is None:
        raise FileNotFoundError(f"no checkpoint in {folder}: is it the folder of a run?")
    run.model.to(device)
    return run


def describe(config: Config, spec: DataSpec) -> dict[str, object]:
    """Return the description of a run that a checkpoint holds and :func:`read_description` reads, as JSON values."""
    return {"config": config.to_json(), "data": dataclasses.asdict(spec)}


def read_description(meta: dict[str, Any]) -> tuple[Config, DataSpec]:
    """Return the settings of a run and the description of its data.

    Raises:
        DamagedCheckpointError: a value is missing or invalid.
        UnsupportedCheckpointError: the settings are not those that this version has, but for those it added.
    """
    return _from_json(Config, meta, "config", ADDED), _from_json(DataSpec, meta, "data", {})


def _restore(checkpoint: Checkpoint) -> Run:
    config, spec = read_description(checkpoint.meta)
    model = build_model(config, spec)
    model.load_state_dict(checkpoint.group("ema", like=model.state_dict()))
    return Run(config, spec, build_path(config), model.eval(), checkpoint.step)


def _from_json(kind: Any, meta: dict[str, Any], name: str, added: dict[str, Any]) -> Any:
    values = meta.get(name)
    if not isinstance(values, dict):
        raise DamagedCheckpointError(f"{name} is missing")
    values = {**added, **values}
    fields = {field.name for field in dataclasses.fields(kind)}
    for key in sorted(values.keys() ^ fields):
        reason = "lacks" if key in fields else "has the unknown key"
        raise UnsupportedCheckpointError(f"{name} {reason} {key!r}: it was written by another version of fastflow")
    try:
        return kind.from_json(values)
    except (TypeError, ValueError) as error:
        raise DamagedCheckpointError(f"{name}: {error}") from error


@torch.no_grad()
def generate(
    model: Model,
    spec: DataSpec,
    path: paths.Path,
    num: int,
    y: Tensor | None = None,
    *,
    seed: int,
    num_steps: int,
    solver: Solver = "heun",
    guidance: float = 1.0,
    mode_guidance: float = 0.0,
) -> Tensor:
    """Draw samples ``[num, *shape]`` in the data's own units, on the CPU.

    Sample i depends on the seed, i and label i only.

    Args:
        model: a velocity network.
        spec: description of its data.
        path: the path it was trained on.
        num: number of samples.
        y: labels ``[num]``, None for unconditional samples.
        seed: seed of the noise.
        num_steps: solver steps.
        solver: see :func:`fastflow.sample_ode`.
        guidance: classifier-free guidance scale.
        mode_guidance: weight of mode-seeking guidance.

    Raises:
        ValueError: guidance without labels or without a null class.
        NonFiniteError: a sample is infinite or NaN.
    """
    if y is None and guidance != 1.0:
        raise ValueError(f"guidance {guidance} needs labels, and the samples are unconditional")
    device = next(model.parameters()).device
    noise = GaussianNoise(seed, Purpose.SAMPLES.at(0)).materialize((num, *spec.shape), device=device)
    low, high = path.domain
    parts = []
    for index in torch.arange(num).split(SAMPLES_TOGETHER):
        velocity: Velocity = model
        if y is not None:
            labels = y[index].to(device)
            velocity = classifier_free_guidance(model, labels, scale=guidance, null_class=model.null_class)
        x = sample_ode(
            velocity,
            noise[index],
            num_steps=num_steps,
            solver=solver,
            t0=low,
            t1=high,
            mode_guidance=mode_guidance,
        )
        parts.append(x.cpu())
    samples = spec.to_data_units(torch.cat(parts))
    if not samples.isfinite().all():
        raise NonFiniteError("the samples are not finite: use less guidance, or train with a lower learning rate")
    return samples
