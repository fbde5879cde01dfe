"""The command line, called in process: what it prints, what it writes, and how it fails."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastflow import cli

for library in ("tyro", "safetensors", "tqdm", "matplotlib", "scipy", "sklearn"):
    pytest.importorskip(library)

TRAIN = [
    *("--hidden-size", "16", "--steps", "4", "--batch-size", "8"),
    *("--sample-every", "0", "--sample-steps", "2", "--eval-samples", "0"),
]


@pytest.fixture(scope="module")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "digits"
    cli.main(["train", *TRAIN, "--depth", "1", "--out", str(out)])
    return out


@pytest.fixture(scope="module")
def moons_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "moons"
    cli.main(["train", *TRAIN, "--data", "moons", "--eval-samples", "64", "--out", str(out)])
    return out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["train", "sample", "doctor"]),
        (["train", "--help"], ["--data", "--steps", "--resume", "--checkpoint-every", "moons", "(default: 2000)"]),
        (["sample", "--help"], ["RUN", "--guidance", "--solver", "{euler,midpoint,heun,rk4}"]),
    ],
)
def test_help(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        cli.main(arguments)
    text = capsys.readouterr().out
    assert all(word in text for word in words)


def test_train_prints_its_summary(moons_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", *TRAIN, "--data", "moons", "--eval-samples", "64", "--out", str(moons_run), "--resume"]
    cli.main(arguments)
    printed = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    summary = json.loads((moons_run / "summary.json").read_text())
    assert set(summary) == {"w2", "w2_floor", "w2_noise", "steps", "train_seconds"}
    assert set(printed) == {*summary, "samples"}
    assert float(printed["w2"]) == pytest.approx(summary["w2"], abs=1e-4)


def test_sample_to_a_picture(digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "grid.png"
    arguments = ["--num", "12", "--steps", "2", "--solver", "heun", "--guidance", "2.0", "--out", str(out)]
    cli.main(["sample", str(digits_run), *arguments])
    assert out.read_bytes().startswith(b"\x89PNG")
    assert f"12 samples of step 4: {out}" in capsys.readouterr().out


def test_sample_to_arrays(digits_run: Path, tmp_path: Path) -> None:
    arguments = ["sample", str(digits_run), "--num", "12", "--steps", "2"]
    arrays = {}
    for name, more in {"a": [], "again": [], "seed": ["--seed", "1"], "seven": ["--label", "7"]}.items():
        cli.main([*arguments, *more, "--out", str(tmp_path / f"{name}.npz")])
        arrays[name] = dict(np.load(tmp_path / f"{name}.npz"))
    assert arrays["a"]["x"].shape == (12, 1, 8, 8)
    assert arrays["a"]["y"].tolist() == [*range(10), 0, 1]
    assert (arrays["seven"]["y"] == 7).all()
    assert (arrays["a"]["x"] == arrays["again"]["x"]).all()
    assert (arrays["a"]["x"] != arrays["seed"]["x"]).any()


def test_sample_of_data_without_labels(moons_run: Path, tmp_path: Path) -> None:
    cli.main(["sample", str(moons_run), "--num", "5", "--steps", "2", "--out", str(tmp_path / "a.npz")])
    arrays = np.load(tmp_path / "a.npz")
    assert arrays["x"].shape == (5, 2)
    assert (arrays["y"] == -1).all()


def test_doctor_needs_no_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(cli.doctor, "main", lambda: called.append(True))
    monkeypatch.setitem(sys.modules, "tyro", None)
    cli.main(["doctor"])
    assert called


def test_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["train"])
    assert capsys.readouterr().err == (
        "fastflow: tyro is not installed; the trainer needs it: pip install 'fastflow[train]'\n"
    )


def test_interrupt_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(command: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_run", interrupted)
    with pytest.raises(SystemExit, match=r"^130$"):
        cli.main(["doctor"])
    assert "--resume" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_gpu_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(["train", *TRAIN, "--data", "moons", "--device", "cuda", "--out", str(tmp_path)])
    assert "'cuda' was asked for, and there is no GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --data nonsense --out {tmp}/a", "data must be one of digits"),
        ("train --data {tmp}/no.npy --out {tmp}/a", "no.npy"),
        ("train --data moons --device tpu9 --out {tmp}/a", "device must be auto, cpu, cuda or cuda:N, got 'tpu9'"),
        ("train --steps 0", "steps must be at least 1, got 0"),
        ("train --solver dopri5", "dopri5"),
        ("train --no-such-option 1", "no-such-option"),
        ("train --data moons --out {run}", "holds a run already"),
        ("sample {tmp}/absent", "no checkpoint in"),
        ("sample {run} --out grid.gif", "out must end in .png or .npz, got 'grid.gif'"),
        ("sample {run} --num 0", "num must be at least 1"),
        ("sample {run} --label 3 --out {tmp}/a.png", "the data has no classes"),
        ("sample {run} --guidance 2 --out {tmp}/a.png", "needs labels"),
    ],
)
def test_errors_are_one_line_and_status_two(
    arguments: str, message: str, moons_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match=r"^2$"):
        cli.main(arguments.format(tmp=tmp_path, run=moons_run).split())
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "a").exists()
