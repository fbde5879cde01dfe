"""One training at a time in a folder, and no lock that outlives its process."""

import errno
import fcntl
import os
import re
import signal
from pathlib import Path

import pytest

from fastflow.train import Config, load_run, train
from fastflow.train.errors import RunInUseError
from fastflow.train.lock import locked

from .test_resume import POINTS

for library in ("safetensors", "tqdm", "matplotlib", "scipy"):
    pytest.importorskip(library)


@pytest.mark.parametrize("settings", [{}, {"resume": True}, {"overwrite": True}], ids=["new", "resume", "overwrite"])
def test_a_second_training_is_refused_and_told_who_is_there(settings: dict[str, bool], tmp_path: Path) -> None:
    train(Config(**POINTS, steps=2, out=tmp_path))
    with locked(tmp_path):
        with pytest.raises(
            RunInUseError, match=rf"^{re.escape(str(tmp_path))} is in use .*: process {os.getpid()} on "
        ):
            train(Config(**POINTS, steps=2, out=tmp_path, **settings))
        assert load_run(tmp_path).step == 2  # sampling needs no lock
    assert (tmp_path / "checkpoints" / "step_00000002").exists()
    assert not (tmp_path / ".fastflow.lock").exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        with locked(tmp_path):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    assert (tmp_path / ".fastflow.lock").exists()
    with locked(tmp_path):
        pass


def test_a_forked_worker_does_not_keep_the_lock(tmp_path: Path) -> None:
    read, write = os.pipe()
    holder = os.fork()
    if holder == 0:
        with locked(tmp_path):
            worker = os.fork()
            if worker == 0:
                os.close(write)
                signal.pause()
            os.write(write, f"{worker}".encode())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(holder, 0)
    worker = int(os.read(read, 20))
    try:
        os.kill(worker, 0)  # it lives
        with locked(tmp_path):
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(read)
        os.close(write)


def test_a_forked_child_that_leaves_the_block_releases_nothing(tmp_path: Path) -> None:
    with locked(tmp_path):
        pid = os.fork()
        if pid == 0:
            break_out = locked(tmp_path)
            try:
                with break_out:
                    os._exit(1)
            except RunInUseError:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with pytest.raises(RunInUseError), locked(tmp_path):
            pass


def test_folders_made_for_a_run_that_never_began_are_removed(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        train(Config(**{**POINTS, "data": "no.npy"}, out=tmp_path / "a" / "b"))
    assert not (tmp_path / "a").exists()
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_a_warning(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.warns(RuntimeWarning, match=rf"{re.escape(str(tmp_path))} cannot be locked"), locked(tmp_path):
        pass


def test_a_link_in_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".fastflow.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"\.fastflow\.lock"), locked(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
