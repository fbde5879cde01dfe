"""The end of a command: one line and the documented status, and a traceback for bugs only."""

import errno
import io
import os
import shlex
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch

from fastflow import cli
from fastflow.sampling.adaptive import IntegrationError
from fastflow.train import loop
from fastflow.train.checkpoint import list_checkpoints

for library in ("tyro", "safetensors", "tqdm", "matplotlib", "scipy"):
    pytest.importorskip(library)

TRAIN = [
    *("train", "--data", "moons", "--hidden-size", "8", "--depth", "1", "--steps", "4", "--batch-size", "8"),
    *("--sample-every", "0", "--sample-steps", "1", "--eval-samples", "0"),
]


def status(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    return stop.value.code


def send_at_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    step = loop.train_step

    def with_signal(*arguments: object) -> object:
        os.kill(os.getpid(), number)
        monkeypatch.undo()
        return step(*arguments)

    monkeypatch.setattr(loop, "train_step", with_signal)


@pytest.mark.parametrize("option", ["--overwrite", "--resume"])
def test_the_printed_command_goes_on(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "my run"
    send_at_step(monkeypatch, signal.SIGTERM)
    assert status(*TRAIN, option, "--out", str(out)) == 128 + signal.SIGTERM
    notice, line = capfd.readouterr().err.splitlines()
    assert notice == "fastflow: SIGTERM: finishing the step; a second signal stops at once"
    assert line.startswith(f"fastflow: stopped by SIGTERM after step 1; checkpoint: {out}/checkpoints/step_00000001; ")
    command = shlex.split(line.partition("; to go on: ")[2])
    assert "--overwrite" not in command
    cli.main(command[command.index("train") :])
    assert list_checkpoints(out / "checkpoints")[0].name == "step_00000004"


def test_a_run_without_a_checkpoint_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --overwrite, as typed: --resume would go on with the earlier run."""
    original = loop.load_data
    monkeypatch.setattr(loop, "load_data", lambda *a: os.kill(os.getpid(), signal.SIGUSR1) or original(*a))
    arguments = [*TRAIN, "--overwrite", "--out", str(tmp_path / "run")]
    assert status(*arguments) == 128 + signal.SIGUSR1
    line = capsys.readouterr().err
    assert line.startswith("fastflow: stopped by SIGUSR1 before the first step; to go on: ")
    assert line.endswith(f"fastflow {shlex.join(arguments)}\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried"),
    ],
    ids=["python", "gpu", "cpu"],
)
@pytest.mark.parametrize("command", [TRAIN, ["sample", "x"], ["likelihood", "x"], ["doctor"]], ids=lambda c: c[0])
def test_out_of_memory(
    error: Exception, command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert status(*command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastflow: out of memory; use smaller batches")


def test_an_unexpected_error_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(cli, "_run", fail)
    with pytest.raises(KeyError, match="surprise"):
        cli.main(["doctor"])
    assert "this is a bug; please report it" in capsys.readouterr().err


def test_the_doctor_goes_on_after_an_op_that_raises(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(cli.doctor, "relative_errors", fail)
    assert status("doctor") == 1
    printed = capsys.readouterr().out
    assert printed.count("FAILED: RuntimeError: no kernel image") >= printed.count("  auto ") > 1
    assert printed.endswith("checks FAILED\n")


def test_an_adaptive_solver_that_cannot_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> None:
        raise IntegrationError("solver 'dopri5' cannot go on at t = 0.5: the step became too small")

    monkeypatch.setattr(cli, "_run", fail)
    assert status("likelihood", "x") == 2
    assert capsys.readouterr().err == ("fastflow: solver 'dopri5' cannot go on at t = 0.5: the step became too small\n")


def test_a_full_disk_under_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(cli, "_run", lambda _: print("text"))
        monkeypatch.setattr(sys, "stdout", full)
        assert status("doctor") == 2
        monkeypatch.undo()
    assert capsys.readouterr().err == f"fastflow: stdout: {os.strerror(errno.ENOSPC)}\n"


def test_a_closed_pipe_under_stdout(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        monkeypatch.setattr(cli, "_run", lambda _: print("text"))
        monkeypatch.setattr(sys, "stdout", pipe)
        assert status("doctor") == 2
        monkeypatch.undo()
    assert capsys.readouterr().err == "fastflow: stdout: the reader has closed the pipe\n"


def test_this_packages_warnings_are_one_line() -> None:
    before = warnings.formatwarning
    with cli._plain_warnings():
        assert warnings.formatwarning("text", RuntimeWarning, loop.__file__, 3) == "fastflow: text\n"
        assert warnings.formatwarning("text", RuntimeWarning, torch.__file__, 3) == before(
            "text", RuntimeWarning, torch.__file__, 3
        )
    assert warnings.formatwarning is before


@pytest.mark.parametrize("command", ["train", "sample"])
def test_no_usable_checkpoint(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*TRAIN, "--out", str(tmp_path)]
    cli.main(arguments)
    (tmp_path / "checkpoints" / "step_00000004" / "manifest.json").write_text("null")
    with pytest.warns(RuntimeWarning, match="skipped"):
        assert status(*([*arguments, "--resume"] if command == "train" else ["sample", str(tmp_path)])) == 2
    assert f"fastflow: every checkpoint in {tmp_path}/checkpoints is damaged; the newest: " in capsys.readouterr().err


def test_an_ascii_terminal_shows_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    monkeypatch.setattr(cli.doctor, "run", lambda: print("1.0 ± 0.1"))
    cli.main(["doctor"])
    assert stream.buffer.getvalue().split() == [b"1.0", b"\\xb1", b"0.1"]


def test_a_path_that_safetensors_cannot_read_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(*TRAIN, "--out", str(tmp_path / "r\udcff")) == 2
    assert "fastflow: out must be valid UTF-8, got " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train", "sample"])
def test_an_output_that_cannot_be_written_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    cli.main([*TRAIN, "--out", str(tmp_path / "run")])
    capsys.readouterr()
    out = str(tmp_path / "file" / "x.png")
    first = TRAIN if command == "train" else ["sample", str(tmp_path / "run"), "--num", "2", "--steps", "1"]
    assert status(*first, "--out", out) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fastflow: ")
    assert str(tmp_path / "file") in line
