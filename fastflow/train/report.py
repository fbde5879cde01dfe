"""What a run shows of itself: pictures on the way, metrics at the end."""

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
from .runs import Model, generate, to_data_units
from .state import State
from .streams import Stream

_ROWS, _COLUMNS = 10, 10
_NUM_POINTS = 2000


def draw_pictures(config: Config, data: Dataset, path: Path, state: State, log: RunLog) -> None:
    """Write ``samples.png`` (and a copy under ``samples/``) and ``loss.png``; the noise is the same every time."""
    spec = data.spec
    y = picture_labels(spec)
    num = _NUM_POINTS if spec.kind == "points" else _ROWS * _COLUMNS if y is None else len(y)
    x = _sampler(config, spec, path, state.ema.model)(num, y)
    real = data.halves(num, config.seed)[0].x if spec.kind == "points" else None
    title = f"{FilePath(config.data).stem}, step {state.step:,}"
    plot_samples(config.out / "samples.png", spec, x, y, title=title, real=real)
    history = config.out / "samples"
    history.mkdir(exist_ok=True)
    shutil.copy(config.out / "samples.png", history / f"step_{state.step:08d}.png")
    plot_losses(config.out / "loss.png", *log.curve())


def final_metrics(config: Config, data: Dataset, path: Path, model: Model) -> dict[str, float]:
    """The metrics of ``summary.json``, none if ``eval_samples`` is 0."""
    if config.eval_samples == 0:
        return {}
    spec = data.spec

    def noise(num: int) -> Tensor:
        draw = GaussianNoise(config.seed, Stream.SAMPLES.at(0)).materialize((num, *spec.shape))
        return to_data_units(draw, spec)

    return evaluate(data, _sampler(config, spec, path, model), noise, config.eval_samples, config.seed)


def picture_labels(spec: DataSpec) -> Tensor | None:
    """Labels of a picture of ten samples of each of the first ten classes, in order; None for data without labels."""
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
