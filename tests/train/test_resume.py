"""A run that was stopped and resumed is the uninterrupted run, bit for bit."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fastflow.train import Config, train
from fastflow.train.checkpoint import Checkpoint, load_checkpoint, newest_checkpoint
from fastflow.train.log import read_rows

for library in ("safetensors", "tqdm", "matplotlib", "scipy", "tyro"):
    pytest.importorskip(library)

TINY = {
    **{"batch_size": 16, "hidden_size": 16, "warmup_steps": 5},
    **{"sample_every": 0, "sample_steps": 2, "eval_samples": 0, "log_every": 3},
}
IMAGES = {**TINY, "data": "digits", "depth": 1, "num_heads": 2}
POINTS = {**TINY, "data": "moons"}
FILES = ("metrics.jsonl", "summary.json", "samples.png", "loss.png")


def newest(folder: Path) -> Checkpoint:
    checkpoint = newest_checkpoint(folder / "checkpoints")
    assert checkpoint is not None
    return checkpoint


def assert_same_run(one: Path, other: Path) -> None:
    a, b = newest(one), newest(other)
    assert a.step == b.step
    for group in ("model", "ema", "optimizer"):
        assert a.tensors[group].keys() == b.tensors[group].keys()
        for name, tensor in a.tensors[group].items():
            assert torch.equal(tensor, b.tensors[group][name]), f"{group} {name}"
    rows = read_rows(one / "metrics.jsonl")
    assert rows == read_rows(other / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, a.step + 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        IMAGES,
        POINTS,
        {**POINTS, "path": "bridge", "times": "logit_normal"},
        {**IMAGES, "class_dropout": 0.5, "qk_norm": True},
        {**IMAGES, "norm": "rms", "qk_norm": True, "rope": True, "mlp": "swiglu"},
    ],
    ids=["images", "points", "bridge", "dropout", "modern block"],
)
def test_stop_and_resume(settings: dict[str, object], tmp_path: Path) -> None:
    """Stopped twice, after steps 1 and 7."""
    if settings["data"] == "digits":
        pytest.importorskip("sklearn")
    torch.manual_seed(1)
    train(Config(**settings, steps=12, out=tmp_path / "whole"))
    torch.manual_seed(2)  # the global generator must not matter
    for steps in (1, 7, 12):
        train(Config(**settings, steps=steps, out=tmp_path / "parts", resume=steps > 1))
        torch.rand(3)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    assert (tmp_path / "whole" / "samples.png").read_bytes() == (tmp_path / "parts" / "samples.png").read_bytes()


def test_the_global_generator_is_neither_read_nor_moved(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(Config(**POINTS, steps=3, out=tmp_path))
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ(tmp_path: Path) -> None:
    for seed in (0, 1):
        train(Config(**POINTS, steps=3, seed=seed, out=tmp_path / str(seed)))
    losses = [[row["loss"] for row in read_rows(tmp_path / str(seed) / "metrics.jsonl")] for seed in (0, 1)]
    assert all(a != b for a, b in zip(*losses))


def test_rows_after_the_checkpoint_are_written_again(tmp_path: Path) -> None:
    """A run that died after step 9, with its last checkpoint at step 6 and half a row in its log."""
    train(Config(**POINTS, steps=9, out=tmp_path / "whole", checkpoint_every=100))
    train(Config(**POINTS, steps=6, out=tmp_path / "parts"))
    rows = (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "parts" / "metrics.jsonl").write_text("".join(rows[:8]).replace("-", "") + rows[8][:20])
    train(Config(**POINTS, steps=9, out=tmp_path / "parts", resume=True))
    assert read_rows(tmp_path / "parts" / "metrics.jsonl")[6:] == read_rows(tmp_path / "whole" / "metrics.jsonl")[6:]


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    settings = {**POINTS, "checkpoint_every": 4}
    train(Config(**settings, steps=12, out=tmp_path / "whole"))
    train(Config(**settings, steps=8, out=tmp_path / "parts"))
    file = tmp_path / "parts" / "checkpoints" / "step_00000008" / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match="step_00000008"):
        train(Config(**settings, steps=12, out=tmp_path / "parts", resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_changes_nothing(tmp_path: Path) -> None:
    train(Config(**POINTS, steps=4, out=tmp_path))
    before = newest(tmp_path)
    rows = read_rows(tmp_path / "metrics.jsonl")
    summary = train(Config(**POINTS, steps=4, out=tmp_path, resume=True))
    assert summary["steps"] == 4
    assert read_rows(tmp_path / "metrics.jsonl") == rows
    assert newest(tmp_path).meta == before.meta


def test_resume_of_nothing_starts(tmp_path: Path) -> None:
    train(Config(**POINTS, steps=2, out=tmp_path / "fresh", resume=True))
    assert newest(tmp_path / "fresh").step == 2


def test_an_occupied_folder_is_kept_unless_told(tmp_path: Path) -> None:
    train(Config(**POINTS, steps=2, out=tmp_path / "run"))
    with pytest.raises(FileExistsError, match="--resume to continue it, or --overwrite"):
        train(Config(**POINTS, steps=3, out=tmp_path / "run"))
    assert newest(tmp_path / "run").step == 2
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(Config(**POINTS, steps=1, out=tmp_path / "run", overwrite=True))
    assert newest(tmp_path / "run").step == 1
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 1
    assert (tmp_path / "run" / "notes.txt").exists()


@pytest.mark.parametrize("name", ["checkpoints", "samples", "tensorboard"])
def test_overwrite_deletes_nothing_behind_a_link(name: str, tmp_path: Path) -> None:
    train(Config(**POINTS, steps=2, out=tmp_path / "run"))
    (tmp_path / "run" / name).mkdir(exist_ok=True)
    (tmp_path / "run" / name).rename(tmp_path / "elsewhere")
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    before = sorted(f for f in tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"run/{name} is a link to .*elsewhere: --overwrite"):
        train(Config(**POINTS, steps=3, out=tmp_path / "run", overwrite=True))
    assert sorted(f for f in tmp_path.rglob("*")) == before
    train(Config(**POINTS, steps=3, out=tmp_path / "run", resume=True))
    assert newest(tmp_path / "run").step == 3


def test_overwrite_of_a_folder_behind_a_link_is_complete(tmp_path: Path) -> None:
    train(Config(**POINTS, steps=4, checkpoint_every=1, out=tmp_path / "run"))
    (tmp_path / "link").symlink_to(tmp_path / "run")
    train(Config(**POINTS, steps=2, out=tmp_path / "link", overwrite=True))
    assert [f.name for f in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_00000002"]
    assert len(read_rows(tmp_path / "run" / "metrics.jsonl")) == 2


def test_an_error_while_deleting_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(Config(**POINTS, steps=2, out=tmp_path))

    def refuse(path: str, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "rmdir", refuse)
    with pytest.raises(PermissionError, match="step_00000002"):
        train(Config(**POINTS, steps=1, out=tmp_path, overwrite=True))
    assert len(read_rows(tmp_path / "metrics.jsonl")) == 2


def test_a_folder_that_takes_no_checkpoints_is_found_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").symlink_to(tmp_path / "absent")
    with pytest.raises(OSError, match="checkpoints"):
        train(Config(**POINTS, steps=2, out=tmp_path))
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("option", ["resume", "overwrite"])
@pytest.mark.parametrize("name", ["checkpoints", "samples", "tensorboard", *FILES])
def test_what_stands_where_the_run_writes_is_found_first(name: str, option: str, tmp_path: Path) -> None:
    train(Config(**POINTS, steps=2, out=tmp_path))
    place = tmp_path / name
    shutil.rmtree(place, ignore_errors=True)
    place.unlink(missing_ok=True)
    if name in FILES:
        place.mkdir()
    else:
        place.write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(FileExistsError, match=rf"{name} is no (file|folder), and a run needs its place"):
        train(Config(**POINTS, steps=3, out=tmp_path, **{option: True}))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_neither_read_nor_replaced(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")  # a device, as /dev/null, in the same way
    (tmp_path / name).symlink_to("pipe")
    with pytest.raises(FileExistsError, match=f"{name} is no file"):
        train(Config(**POINTS, steps=2, out=tmp_path))
    assert (tmp_path / "pipe").is_fifo()


def test_a_closed_stderr_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)  # as after 2>&-
    train(Config(**POINTS, steps=2, out=tmp_path))
    assert newest(tmp_path).step == 2


def test_a_finished_run_that_lost_its_metrics_and_pictures_draws_again(tmp_path: Path) -> None:
    train(Config(**POINTS, steps=2, out=tmp_path))
    (tmp_path / "metrics.jsonl").unlink()
    shutil.rmtree(tmp_path / "samples")
    train(Config(**POINTS, steps=2, out=tmp_path, resume=True))
    assert (tmp_path / "samples" / "step_00000002.png").exists()


def test_settings_that_would_change_the_run_are_refused(tmp_path: Path) -> None:
    train(Config(**POINTS, steps=2, out=tmp_path))
    for name, value in {"seed": 1, "batch_size": 8, "path": "cosine", "hidden_size": 8}.items():
        with pytest.raises(ValueError, match=rf"other settings: {name} \(was .*, now"):
            train(Config(**{**POINTS, name: value}, steps=3, out=tmp_path, resume=True))


@pytest.mark.slow
def test_killed_and_resumed_on_the_command_line(tmp_path: Path) -> None:
    """SIGKILL in the middle of a run, then ``--resume``, against a run in this process that was not interrupted."""
    settings = [f"--{name.replace('_', '-')}={value}" for name, value in POINTS.items()]
    fixed = [*settings, "--steps", "100", "--checkpoint-every", "10", "--out", str(tmp_path / "parts")]
    command = [sys.executable, "-m", "fastflow", "train", *fixed]

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path]), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60.0
    while not (tmp_path / "parts" / "checkpoints" / "step_00000010").exists():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert newest(tmp_path / "parts").step < 100

    done = subprocess.run([*command, "--resume"], env=environment, capture_output=True, text=True, check=True)
    assert "train_seconds" in done.stdout
    assert done.stderr == ""  # no progress bar without a terminal
    train(Config(**POINTS, steps=100, checkpoint_every=10, out=tmp_path / "whole"))
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert summary["steps"] == 100
    assert load_checkpoint(tmp_path / "parts" / "checkpoints" / "step_00000100").meta["train_seconds"] > 0
