"""Commands that cannot succeed are refused before the first step, in one line, and leave nothing behind."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastflow import cli
from fastflow.train import memory, preflight
from fastflow.train.memory import check_memory
from fastflow.train.runs import choose_device

for library in ("tyro", "safetensors", "tqdm", "matplotlib", "scipy", "sklearn"):
    pytest.importorskip(library)

SMALL = [
    *("--steps", "2", "--batch-size", "4", "--hidden-size", "16", "--warmup-steps", "0"),
    *("--sample-every", "0", "--sample-steps", "1", "--eval-samples", "0"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on points, and on images with the labels 3, 5 and 10."""
    folder = tmp_path_factory.mktemp("runs")
    x = np.random.default_rng(0).integers(0, 256, (30, 1, 4, 4), dtype=np.uint8)
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", np.array([3, 5, 10] * 10))
    labelled = ["--data", str(folder / "x.npy"), "--labels", str(folder / "y.npy"), "--depth", "1"]
    cli.main(["train", *SMALL, "--data", "moons", "--out", str(folder / "moons")])
    cli.main(["train", *SMALL, *labelled, "--out", str(folder / "labelled")])
    cli.main(["train", *SMALL, *labelled, "--class-dropout", "0", "--out", str(folder / "no_dropout")])
    return folder


def refusal(line: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(line.split())
    message = capsys.readouterr().err
    assert message.startswith("fastflow: ")
    assert message.count("\n") == 1
    return message


TRAIN = {
    "--depth -1": "depth must be at least 1, got -1",
    "--depth 0": "depth must be at least 1, got 0",
    "--hidden-size -4": "hidden_size must be at least 1, got -4",
    "--learning-rate nan": "learning_rate must be positive, got nan",
    "--learning-rate inf": "learning_rate must be positive and finite, got inf",
    "--clip-norm inf": "clip_norm must be positive and finite",
    "--weight-decay nan": "weight_decay must be finite, got nan",
    "--guidance nan": "guidance must be finite, got nan",
    "--sigma inf --path tube": "sigma must be finite, got inf",
    "--sigma 1.5 --path sigma_min": "sigma_min must satisfy",
    "--seed 9223372036854775808": "seed must be at most 9223372036854775807",
    "--eval-samples -5": "eval_samples must not be negative, got -5",
    "--eval-samples 1000000000000": "eval_samples 1000000000000 would need",
    "--batch-size 1000000000000": "batch_size must be at most",
    "--guidance 2": "guidance 2.0 needs labels, and moons has none",
    "--guidance 2 --data digits --class-dropout 0": "needs a model that was trained with class_dropout above 0",
    "--data digits --eval-samples 1": "eval_samples must be 0 or at least 2",
    "--data digits --patch-size 3": "patch_size must divide input_size (8, 8), got 3",
    "--data digits --num-heads 5": "num_heads must divide hidden_size 16, got 5",
    "--data digits --hidden-size 65536 --depth 100": "parameters would need",
    "--data digits --image-size 64": "image_size applies to folders of images only, got 64",
    "--num-heads 2": "num_heads applies to images and latents only, got 2",
    "--qk-norm": "qk_norm applies to images and latents only",
    "--norm rms": "norm applies to images and latents only, got rms",
    "--rope": "rope applies to images and latents only",
    "--mlp swiglu": "mlp applies to images and latents only, got swiglu",
    "--data digits --rope --num-heads 8": "rope needs a head dim hidden_size / num_heads that is a multiple of 4",
    "--class-dropout 0.5": "class_dropout applies to data with labels only",
    "--sigma 0.5": "sigma applies to the paths sigma_min, tube, independent, bridge only, got 0.5",
    "--device mps": "device must be auto, cpu, cuda or cuda:N, got 'mps'",
    "--device meta": "device must be auto, cpu, cuda or cuda:N, got 'meta'",
    "--device cuda:-1": "device must be auto, cpu, cuda or cuda:N, got 'cuda:-1'",
    "--device cpu:1": "device must be auto, cpu, cuda or cuda:N, got 'cpu:1'",
    "--labels y.npy": "labels belong to data in an .npy array",
}


@pytest.mark.parametrize(("settings", "message"), TRAIN.items(), ids=TRAIN)
def test_train(settings: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = f"train {' '.join(SMALL)} --data moons {settings} --out {tmp_path / 'out'}"
    assert message in refusal(line, capsys)
    assert not (tmp_path / "out").exists()


COMMANDS = {
    "sample {moons} --steps -1": "steps must be at least 1, got -1",
    "sample {moons} --guidance nan": "guidance must be finite",
    "sample {moons} --mode-guidance inf": "mode_guidance must be finite",
    "sample {moons} --seed -1": "seed must not be negative",
    "sample {moons} --num 1000000000000": "num 1000000000000 would need",
    "sample {moons} --num 10000000000000000": "num must be at most",
    "sample {moons} --device mps": "device must be auto, cpu, cuda or cuda:N",
    "sample {moons} --label 1": "label must be left out: the data has no classes",
    "sample {moons} --guidance 2": "guidance 2.0 needs labels",
    "sample {no_dropout} --guidance 2": "needs a model that was trained with class_dropout above 0",
    "sample {labelled} --label 0": "label must be one of the 3 classes 3, 5, 10, got '0'",
    "sample {labelled} --label -1": "label must be one of the 3 classes 3, 5, 10, got '-1'",
    "sample {labelled} --num 100000 --out {tmp}/a.png": "samples is too large: write an .npz file",
    "sample {moons} --out {tmp}/file/a.npz": "file: Not a directory",
    "sample {moons} --out {tmp}/folder.npz": "folder.npz: Is a directory",
    "likelihood {moons} --steps 0": "steps must be at least 1, got 0",
    "likelihood {moons} --num-probes -1": "num_probes must be at least 1, got -1",
    "likelihood {moons} --levels 100000": "levels must be at most 65536",
    "likelihood {moons} --num 1000000000000": "num 1000000000000 would need",
    "likelihood {moons} --num 4 --num-probes 1000000000000": "num_probes 1000000000000 would need",
    "likelihood {moons} --device gpu": "device must be auto, cpu, cuda or cuda:N, got 'gpu'",
    "likelihood {moons} --out {tmp}/file/h.png": "file: Not a directory",
}


@pytest.mark.parametrize(("line", "message"), COMMANDS.items(), ids=COMMANDS)
def test_sample_and_likelihood(
    line: str, message: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.npz").mkdir()
    if "--out" not in line:
        line += " --out {tmp}/out" + (".png" if line.startswith("likelihood") else ".npz")
    names = {name: runs / name for name in ("moons", "labelled", "no_dropout")}
    assert message in refusal(line.format(**names, tmp=tmp_path), capsys)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder.npz"]


def test_samples_have_the_labels_of_the_file(runs: Path, tmp_path: Path) -> None:
    for arguments, expected in (("--num 7", [3, 5, 10, 3, 5, 10, 3]), ("--num 2 --label 10", [10, 10])):
        line = f"sample {runs / 'labelled'} --steps 1 {arguments} --out {tmp_path / 'a.npz'}"
        cli.main(line.split())
        assert np.load(tmp_path / "a.npz")["y"].tolist() == expected


def test_a_picture_shows_every_sample(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastflow.train import plots

    shown: list[Any] = []
    original = plots._displayable
    monkeypatch.setattr(plots, "_displayable", lambda spec, x: shown.append(len(x)) or original(spec, x))
    cli.main(f"sample {runs / 'labelled'} --steps 1 --num 700 --out {tmp_path / 'a.png'}".split())
    assert sum(shown) == 700
    assert max(shown) == 100


def test_other_data_is_no_continuation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same shape, mean and standard deviation; neither training nor likelihood may go on with it."""
    file, out = tmp_path / "x.npy", tmp_path / "out"
    x = np.random.default_rng(0).integers(0, 256, (16, 3, 4, 4), dtype=np.uint8)
    np.save(file, x)
    line = f"train {' '.join(SMALL)} --depth 1 --data {file} --out {out}"
    cli.main(line.split())
    np.save(file, x[::-1])
    assert "is not the data that the run" in refusal(f"{line} --resume --steps 4", capsys)
    assert "is not the data that the run" in refusal(f"likelihood {out} --out {tmp_path}/h.png", capsys)
    np.save(file, x)
    cli.main(f"{line} --resume --steps 4".split())
    assert "has done 4 steps, and steps is 2" in refusal(f"{line} --resume", capsys)


@pytest.mark.parametrize("num", [1, 3])
def test_too_little_data_for_metrics(num: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((num, 3, 4, 4), np.uint8))
    line = f"train {' '.join(SMALL)} --depth 1 --data {tmp_path / 'x.npy'} --eval-samples 4 --out {tmp_path / 'out'}"
    assert f"the final metrics need 4 samples, and {tmp_path / 'x.npy'} holds {num}" in refusal(line, capsys)


def test_one_sample_has_no_standard_error(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(f"likelihood {runs / 'moons'} --num 1 --steps 1 --out {tmp_path}/h.png".split())
    printed = capsys.readouterr().out
    assert "±" not in printed
    assert printed.count(", of one sample") == 2


def test_likelihood_of_one_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 4, 4), np.uint8))
    cli.main(f"train {' '.join(SMALL)} --depth 1 --data {tmp_path / 'x.npy'} --out {tmp_path / 'out'}".split())
    assert "holds one sample" in refusal(f"likelihood {tmp_path / 'out'} --out {tmp_path}/h.png", capsys)


def test_output_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    os.symlink(tmp_path / "nowhere", tmp_path / "broken")
    for folder in (tmp_path / "file", tmp_path / "file" / "deep" / "er", tmp_path / "broken"):
        with pytest.raises(NotADirectoryError, match=r"Not a directory: .*/(file|broken)'"):
            preflight.check_output_file(folder / "a.npz")
    preflight.check_output_file(tmp_path / "new" / "deep" / "a.npz")
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"Permission denied: '{tmp_path}'"):
        preflight.check_output_file(tmp_path / "new" / "a.npz")


def test_missing_libraries_are_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for library, settings in (("scipy.optimize", "--eval-samples 8"), ("tensorboard", "--tensorboard")):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, library, None)
            line = f"train {' '.join(SMALL)} --data moons {settings} --out {tmp_path / 'out'}"
            assert "is not installed; the trainer needs it" in refusal(line, capsys)
    assert not (tmp_path / "out").exists()


def test_memory_is_estimated_before_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    check_memory(1, "a byte")
    with pytest.raises(ValueError, match=r"^all of it would need 1,024\.0 GiB of memory, and .* GiB are free$"):
        check_memory(2**40, "all of it") if memory._free_memory() < 2**40 else check_memory(2**80, "all of it")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 100)
    check_memory(1400, "all of it", torch.device("cuda"))
    with pytest.raises(ValueError, match="all of it would need"):
        check_memory(1401, "all of it", torch.device("cuda"))


def test_gpus_that_do_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda")
    for name in ("cuda:2", "cuda:99"):
        with pytest.raises(ValueError, match=f"device '{name}' was asked for, and there are 2 GPUs, from cuda:0"):
            choose_device(name)
    for name in ("cuda:", "cuda:x", "CUDA", "cuda:1 ", "mps:0", "", "cuda:٣"):
        with pytest.raises(ValueError, match="device must be auto, cpu, cuda or cuda:N"):
            choose_device(name)
