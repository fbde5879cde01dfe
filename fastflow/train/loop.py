"""The training loop."""

import contextlib
import functools
import json
import os
import sys
import time
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.flow_step.api import flow_matching_loss, interpolate
from ..ops.random import GaussianNoise, uniform
from ..paths import Path, sample_times
from .checkpoint import Checkpoint, check_writable, checkpoint_folder, list_checkpoints, restore_newest, save_checkpoint
from .config import Config
from .data import Dataset, DataSpec, load_data
from .extras import extra
from .files import naming, remove, replace_text
from .lock import locked
from .log import RunLog
from .preflight import check_training
from .purposes import Purpose
from .report import draw_pictures, final_metrics, picture_file
from .runs import build_path, choose_device, read_description
from .signals import Stopped, StopSignals
from .state import State

_FOLDERS = ("checkpoints", "samples", "tensorboard")
_FILES = ("metrics.jsonl", "summary.json", "samples.png", "loss.png")


def train(config: Config, stop: StopSignals | None = None) -> dict[str, float]:
    """Train a model as configured and write its run to the folder ``config.out``.

    The folder gets ``metrics.jsonl`` (one row per step), ``checkpoints/``, ``samples.png``, ``samples/`` (earlier
    pictures), ``loss.png`` and, at the end, ``summary.json``. The same settings, machine and library versions give the
    same numbers bit for bit, interrupted or not (on a GPU, if the kernels are deterministic).

    Args:
        config: the settings.
        stop: signals that end the training after the current step, with a checkpoint. By default no signal is caught:
            a program that calls this function keeps its own handlers.

    Returns:
        The content of ``summary.json``: the final metrics, ``steps`` and ``train_seconds``.

    Raises:
        FileExistsError: the folder holds a run, and neither resume nor overwrite is set; or something else is where
            the run would write.
        ValueError: the settings contradict each other or those of the run being resumed.
        NonFiniteError: a loss, gradient or weight is not finite; the message names the step and the last good
            checkpoint.
        DamagedCheckpointError: every checkpoint of the run being resumed is damaged.
        UnsupportedCheckpointError: the run being resumed was written by another version.
        RunInUseError: another training is at work in the folder.
        OSError: a file cannot be read or written; the error names it.
        Stopped: ``stop`` received a signal.
    """
    with locked(config.out):
        return _train(config, StopSignals() if stop is None else stop)


def _train(config: Config, stop: StopSignals) -> dict[str, float]:
    with stop.at_once("before the first step"):
        device = choose_device(config.device)
        data = load_data(config.data, config.labels, config.image_size)
        path = build_path(config)
        check_training(config, data, device)
        state = State.initial(config, data.spec, device)
    _prepare_folder(config, data.spec, state)
    saved = state.step
    network = torch.compile(state.model) if config.compile else state.model

    with contextlib.closing(RunLog(config.out, state.step, config.tensorboard)) as log, _progress(config, state) as bar:
        if saved and not picture_file(config, state.step).exists():  # stopped before it was drawn
            _draw_if_due(config, data, path, state, log, stop)
        while state.step < config.steps and stop.received is None:
            started = time.perf_counter()
            rate = learning_rate(config, state.step)
            loss, grad_norm = train_step(config, data, path, network, state, rate, device)
            state.step += 1
            log.add(state.step, rate, loss, grad_norm)

            saves = state.step == config.steps or state.step % config.checkpoint_every == 0 or stop.received is not None
            if saves or state.step % config.log_every == 0:
                bar.set_postfix(loss=f"{log.flush():.4f}", refresh=False)
            state.seconds += time.perf_counter() - started
            if saves:
                _save(config, data.spec, state)
                saved = state.step
            _draw_if_due(config, data, path, state, log, stop)
            bar.update()

        where = f"after step {state.step}" if state.step else "before the first step"
        checkpoint = checkpoint_folder(config.out / "checkpoints", state.step) if state.step else None
        if stop.received is not None:
            if saved < state.step:
                log.flush()
                _save(config, data.spec, state)
            raise Stopped(stop.received, where, checkpoint)
        with stop.at_once(where, checkpoint):
            metrics = final_metrics(config, data, path, state.ema.model)
        log.write_scalars("eval", metrics, state.step)
    summary = {**metrics, "steps": state.step, "train_seconds": round(state.seconds, 2)}
    replace_text(config.out / "summary.json", json.dumps(summary, indent=1) + "\n")
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
    x1 = spec.standardise(x1).to(device, non_blocking=True)
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
    _check_places(config.out)
    checkpoints = config.out / "checkpoints"
    if list_checkpoints(checkpoints) or (config.out / "metrics.jsonl").exists():
        if config.overwrite:
            _remove_run(config.out)
        elif not config.resume:
            raise FileExistsError(f"{config.out} holds a run already: pass --resume to continue it, or --overwrite")
    check_writable(checkpoints)
    if config.resume:
        restore_newest(checkpoints, functools.partial(_restore, config, spec, state))


def _restore(config: Config, spec: DataSpec, state: State, checkpoint: Checkpoint) -> None:
    earlier, earlier_spec = read_description(checkpoint.meta)
    config.check_continues(earlier)
    if earlier_spec != spec:
        raise ValueError(f"{config.data} is not the data that the run in {config.out} was trained on")
    if config.steps < checkpoint.step:
        raise ValueError(f"the run in {config.out} has done {checkpoint.step} steps, and steps is {config.steps}")
    state.restore(checkpoint)


def _save(config: Config, spec: DataSpec, state: State) -> None:
    save_checkpoint(config.out / "checkpoints", state.to_checkpoint(config, spec), config.keep_checkpoints)


def _draw_if_due(config: Config, data: Dataset, path: Path, state: State, log: RunLog, stop: StopSignals) -> None:
    """Draw the pictures of a step that has them; a signal cuts that short, and the caller sees it in ``stop``."""
    due = state.step == config.steps or (config.sample_every and state.step % config.sample_every == 0)
    if due:
        with contextlib.suppress(Stopped), stop.at_once("while drawing"), naming(config.out / "samples.png"):
            draw_pictures(config, data, path, state, log)


def _check_places(folder: FilePath) -> None:
    """Raise a FileExistsError if a folder is where a run writes a file, or the reverse; a device is neither."""
    places = [(folder / name, FilePath.is_dir, "folder") for name in _FOLDERS]
    places += [(folder / name, FilePath.is_file, "file") for name in _FILES]
    for path, is_right, kind in places:
        if path.exists() and not is_right(path):
            raise FileExistsError(f"{path} is no {kind}, and a run needs its place: move it, or choose another --out")


def _remove_run(folder: FilePath) -> None:
    """Delete the files that a run writes, and nothing else in the folder."""
    folders = [folder / name for name in _FOLDERS]
    for path in folders:
        if path.is_symlink():
            raise ValueError(
                f"{path} is a link to {os.readlink(path)}: --overwrite deletes nothing behind a link; "
                "empty that folder or remove the link yourself, or choose another --out"
            )
    for path in folders:
        for entry in path.iterdir() if os.path.ismount(path) else (path,):
            remove(entry)
    for name in _FILES:
        (folder / name).unlink(missing_ok=True)


def _autocast(config: Config, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    wanted = config.precision == "bfloat16"
    if config.precision == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def _progress(config: Config, state: State) -> Any:
    hidden = True if sys.stderr is None else None  # None: on a terminal only
    return extra("tqdm").tqdm(total=config.steps, initial=state.step, desc=config.data, unit="step", disable=hidden)
