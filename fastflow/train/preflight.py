"""Check the settings, memory, libraries and files of a command before its first step, and before it writes anything."""

import dataclasses
import errno
import math
import os
from pathlib import Path

import torch

from ..paths.registry import REGISTRY
from .config import Config
from .data import Dataset, DataSpec
from .extras import extra
from .memory import check_memory
from .metrics import check_evaluation
from .runs import SAMPLES_TOGETHER, build_model

_FLOAT = 4  # bytes
_TRAINING_COPIES = 5  # weights, gradients, two moments and the moving average
_BATCH_COPIES = 4  # data, noise, the point between them and the prediction
_SAMPLE_COPIES = 3  # noise, samples and their concatenation


def check_training(config: Config, data: Dataset, device: torch.device) -> None:
    """Check all that a run needs from its first step to its final metrics.

    Raises:
        ModuleNotFoundError: a library is missing that the run would import later.
        ValueError: the settings do not suit each other, the data or the memory; the message names the setting.
    """
    spec = data.spec
    _check_libraries(config, spec)
    _check_used(config, spec)
    check_guidance(config.guidance, spec, config.class_dropout, config.data)
    with torch.device("meta"):
        model = build_model(config, spec)
    size = sum(p.numel() for p in model.parameters())
    check_memory(_TRAINING_COPIES * _FLOAT * size, f"training a model of {size:,} parameters", device)
    batch = _BATCH_COPIES * _FLOAT * config.batch_size * math.prod(spec.shape)
    check_memory(batch, f"batch_size {config.batch_size}", device)
    check_evaluation(data, config.eval_samples, config.data)


def check_guidance(guidance: float, spec: DataSpec, class_dropout: float, data: str) -> None:
    """Raise a ValueError if there are no classes to guide to, or no unconditional model to guide away from."""
    if guidance != 1.0 and not spec.num_classes:
        raise ValueError(f"guidance {guidance} needs labels, and {data} has none")
    if guidance != 1.0 and not class_dropout:
        raise ValueError(f"guidance {guidance} needs a model that was trained with class_dropout above 0")


def check_samples(num: int, spec: DataSpec, device: torch.device, name: str = "num") -> None:
    """Raise a ValueError if so many samples do not fit into memory."""
    check_memory(_SAMPLE_COPIES * _FLOAT * num * math.prod(spec.shape), f"{name} {num}", device)
    check_memory(_SAMPLE_COPIES * spec.dtype.itemsize * num * math.prod(spec.shape), f"{name} {num}")


def check_probes(num_probes: int, num: int, spec: DataSpec, device: torch.device) -> None:
    """Raise a ValueError if the probes of one batch do not fit into memory."""
    size = min(num, SAMPLES_TOGETHER) * math.prod(spec.shape)
    check_memory(_SAMPLE_COPIES * _FLOAT * num_probes * size, f"num_probes {num_probes}", device)


def check_output_file(file: Path) -> None:
    """Raise an OSError unless the file can be written; its folder may have to be made."""
    if file.is_dir():
        raise _os_error(errno.EISDIR, file)
    existing = next(place for place in (file.parent, *file.absolute().parents) if os.path.lexists(place))
    if not existing.is_dir():
        raise _os_error(errno.ENOTDIR, existing)
    if not os.access(existing, os.W_OK | os.X_OK):
        raise _os_error(errno.EACCES, existing)


def _os_error(code: int, path: Path) -> OSError:
    return OSError(code, os.strerror(code), str(path))


def _check_libraries(config: Config, spec: DataSpec) -> None:
    names = ["tqdm", "safetensors.torch", "matplotlib.figure"]
    if config.tensorboard:
        names.append("tensorboard")
    if spec.kind == "points" and config.eval_samples != 0:
        names.append("scipy.optimize")
    for name in names:
        extra(name)


def _check_used(config: Config, spec: DataSpec) -> None:
    """Refuse a setting that would be ignored."""
    has_sigma = [name for name, entry in REGISTRY.items() if entry.sigma]
    network = (spec.kind != "points", "images and latents")
    conditions = {
        "image_size": (spec.shape[1:] == (config.image_size, config.image_size), "folders of images"),
        "patch_size": network,
        "num_heads": network,
        "norm": network,
        "qk_norm": network,
        "rope": network,
        "mlp": network,
        "sigma": (config.path in has_sigma, f"the paths {', '.join(has_sigma)}"),
        "class_dropout": (spec.num_classes > 0, "data with labels"),
    }
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        used, where = conditions.get(field.name, (True, ""))
        if not used and value != field.default:
            raise ValueError(
                f"{field.name} applies to {where} only, got {value} for data {config.data}, path {config.path}"
            )
