"""The training loop."""

import contextlib
import json
import shutil
import time
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.flow_step.api import flow_matching_loss, interpolate
from ..ops.random import GaussianNoise, uniform
from ..paths import Path, sample_times
from .checkpoint import list_checkpoints, newest_checkpoint, save_checkpoint
from .config import Config
from .data import Dataset, DataSpec, load_data
from .extras import extra
from .log import RunLog
from .purposes import Purpose
from .report import draw_pictures, final_metrics
from .runs import build_path, choose_device
from .state import State


def train(config: Config) -> dict[str, float]:
    """Train a model as configured and write its run to the folder ``config.out``.

    The folder gets ``metrics.jsonl`` (one row per step), ``checkpoints/``, ``samples.png``, ``samples/`` (earlier
    pictures), ``loss.png`` and, at the end, ``summary.json``. The same settings, machine and library versions give the
    same numbers bit for bit, interrupted or not (on a GPU, if the kernels are deterministic).

    Returns:
        The content of ``summary.json``: the final metrics, ``steps`` and ``train_seconds``.

    Raises:
        FileExistsError: the folder holds a run, and neither resume nor overwrite is set.
        ValueError: the settings contradict each other or those of the run being resumed.
        NonFiniteError: a loss or gradient is not finite; the message names the step and the last good checkpoint.
    """
    device = choose_device(config.device)
    data = load_data(config.data, config.labels, config.image_size)
    path = build_path(config)
    state = State.initial(config, data.spec, device)
    _prepare_folder(config, data.spec, state)
    network = torch.compile(state.model) if config.compile else state.model

    with contextlib.closing(RunLog(config.out, state.step, config.tensorboard)) as log, _progress(config, state) as bar:
        while state.step < config.steps:
            started = time.perf_counter()
            rate = learning_rate(config, state.step)
            loss, grad_norm = train_step(config, data, path, network, state, rate, device)
            state.step += 1
            log.add(state.step, rate, loss, grad_norm)

            last = state.step == config.steps
            saves = last or state.step % config.checkpoint_every == 0
            if saves or state.step % config.log_every == 0:
                bar.set_postfix(loss=f"{log.flush():.4f}", refresh=False)
            state.seconds += time.perf_counter() - started
            if saves:
                checkpoint = state.to_checkpoint(config, data.spec)
                save_checkpoint(config.out / "checkpoints", checkpoint, config.keep_checkpoints)
            if last or (config.sample_every and state.step % config.sample_every == 0):
                draw_pictures(config, data, path, state, log)
            bar.update()

        metrics = final_metrics(config, data, path, state.ema.model)
        log.write_scalars("eval", metrics, state.step)
    summary = {**metrics, "steps": state.step, "train_seconds": round(state.seconds, 2)}
    (config.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def train_step(
    config: Config, data: Dataset, path: Path, network: Any, state: State, rate: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Update the weights and their moving average; return the loss and the norm of its gradient."""
    with _autocast(config, device):
        loss = batch_loss(config, data, path, network, state.step, device)
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(state.model.parameters(), config.clip_norm)
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.ema.update(state.step)
    return loss, grad_norm


def batch_loss(config: Config, data: Dataset, path: Path, network: Any, step: int, device: torch.device) -> Tensor:
    """Return the flow-matching loss of a step's batch, a pure function of the seed, the step and the weights."""
    seed, spec = config.seed, data.spec
    x1, y = data.batch(step, config.batch_size, seed)
    x1 = ((x1 - spec.mean) / spec.std).to(device, non_blocking=True)
    if y is not None:
        dropped = uniform(y.shape, seed, Purpose.CLASS_DROPOUT.at(step)) < config.class_dropout
        y = torch.where(dropped, spec.num_classes, y).to(device, non_blocking=True)
    x0 = GaussianNoise(seed, Purpose.NOISE.at(step))
    bridge = GaussianNoise(seed, Purpose.BRIDGE.at(step))
    t = sample_times(path, len(x1), seed=seed, offset=Purpose.TIMES.at(step), distribution=config.times, device=device)
    xt = interpolate(x0, x1, t, path=path, noise=bridge)
    return flow_matching_loss(network(xt, t, y), x0, x1, t, path=path, noise=bridge)


def learning_rate(config: Config, step: int) -> float:
    """Return the learning rate: linear warm-up, then constant, so that a run can be extended."""
    return config.learning_rate * min(1.0, (step + 1) / max(1, config.warmup_steps))


def _prepare_folder(config: Config, spec: DataSpec, state: State) -> None:
    checkpoints = config.out / "checkpoints"
    if list_checkpoints(checkpoints) or (config.out / "metrics.jsonl").exists():
        if config.overwrite:
            _remove_run(config.out)
        elif not config.resume:
            raise FileExistsError(f"{config.out} holds a run already: pass --resume to continue it, or --overwrite")
    config.out.mkdir(parents=True, exist_ok=True)
    if config.resume and (checkpoint := newest_checkpoint(checkpoints)) is not None:
        config.check_continues(Config.from_json(checkpoint.meta["config"]))
        if DataSpec.from_json(checkpoint.meta["data"]) != spec:
            raise ValueError(f"{config.data} is not the data that the run in {config.out} was trained on")
        state.restore(checkpoint)


def _remove_run(folder: FilePath) -> None:
    """Delete the files that a run writes, and nothing else in the folder."""
    for name in ("checkpoints", "samples", "tensorboard"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("metrics.jsonl", "summary.json", "samples.png", "loss.png"):
        (folder / name).unlink(missing_ok=True)


def _autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = config.precision == "bfloat16"
    if config.precision == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def _progress(config: Config, state: State) -> Any:
    return extra("tqdm").tqdm(
        total=config.steps, initial=state.step, desc=config.data, unit="step", disable=None
    )  # on a terminal only
