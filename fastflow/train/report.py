"""The report of a run: pictures during training, metrics at the end."""

import os
import shutil
from functools import partial
from pathlib import Path as FilePath

import torch
from torch import Tensor

from ..ops.random import GaussianNoise
from ..paths import Path
from .config import Config
from .data import Dataset, DataSpec
from .log import RunLog
from .metrics import evaluate
from .plots import plot_losses, plot_samples
from .purposes import Purpose
from .runs import Model, generate
from .state import State

_ROWS, _COLUMNS = 10, 10
_NUM_POINTS = 2000


def draw_pictures(config: Config, data: Dataset, path: Path, state: State, log: RunLog) -> None:
    """Write ``samples.png``, a copy under ``samples/``, and ``loss.png``; every call draws the same noise."""
    spec = data.spec
    y = picture_labels(spec)
    num = _NUM_POINTS if spec.kind == "points" else _ROWS * _COLUMNS if y is None else len(y)
    x = _sampler(config, spec, path, state.ema.model)(num, y)
    real = data.halves(num, config.seed)[0].x if spec.kind == "points" else None
    title = f"{FilePath(config.data).stem}, step {state.step:,}"
    plot_samples(config.out / "samples.png", spec, x, y, title=title, real=real)
    plot_losses(config.out / "loss.png", *log.curve())
    copy = picture_file(config, state.step)
    copy.parent.mkdir(exist_ok=True)
    partial = copy.with_name(f".{copy.name}.partial")
    shutil.copy(config.out / "samples.png", partial)
    os.replace(partial, copy)


def picture_file(config: Config, step: int) -> FilePath:
    """Return the file under ``samples/`` that is written last, once all pictures of a step are drawn."""
    return config.out / "samples" / f"step_{step:08d}.png"


def final_metrics(config: Config, data: Dataset, path: Path, model: Model) -> dict[str, float]:
    """Return the metrics of ``summary.json``, none if ``eval_samples`` is 0."""
    if config.eval_samples == 0:
        return {}
    spec = data.spec

    def noise(num: int) -> Tensor:
        stream = GaussianNoise(config.seed, Purpose.SAMPLES.at(0))
        return spec.to_data_units(stream.materialize((num, *spec.shape), backend="reference"))

    return evaluate(data, _sampler(config, spec, path, model), noise, config.eval_samples, config.seed)


def picture_labels(spec: DataSpec) -> Tensor | None:
    """Return labels for ten samples of each of the first ten classes, in order; None for data without labels."""
    if not spec.num_classes:
        return None
    return torch.arange(min(spec.num_classes, _ROWS)).repeat_interleave(_COLUMNS)


def _sampler(config: Config, spec: DataSpec, path: Path, model: Model) -> partial[Tensor]:
    return partial(
        generate,
        model,
        spec,
        path,
        seed=config.seed,
        num_steps=config.sample_steps,
        solver=config.solver,
        guidance=config.guidance,
    )
