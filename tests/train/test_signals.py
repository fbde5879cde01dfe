"""Signals stop a training after its step, with a checkpoint, and nobody else's training."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fastflow.train import Config, loop, train
from fastflow.train import checkpoint as checkpoint_module
from fastflow.train.checkpoint import newest_checkpoint
from fastflow.train.signals import NAMES, Stopped, StopSignals

from .test_resume import POINTS, assert_same_run

for library in ("safetensors", "tqdm", "matplotlib", "scipy"):
    pytest.importorskip(library)

NUMBERS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
SETTINGS = {**POINTS, "steps": 6, "hidden_size": 8, "depth": 1}


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """A shell's background job, for one, starts with SIGINT ignored."""
    earlier = {n: signal.signal(n, signal.SIG_DFL) for n in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in earlier.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(Config(**SETTINGS, out=out))
    return out


def signalling(function: Callable[..., object], number: int, call: int = 1) -> Callable[..., object]:
    """``function``, but its n-th call sends this process a signal first."""
    calls = 0

    def wrapped(*args: object, **kwargs: object) -> object:
        nonlocal calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return wrapped


def stopped(**settings: object) -> Stopped:
    handlers = [signal.getsignal(n) for n in NUMBERS]
    with pytest.raises(Stopped) as raised, StopSignals() as stop:
        train(Config(**{**SETTINGS, **settings}), stop)
    assert [signal.getsignal(n) for n in NUMBERS] == handlers
    return raised.value


def dies_of(child: Callable[[], object]) -> int:
    """Run a function in a fork; return the signal it dies of, negative, or its exit status."""
    pid = os.fork()
    if pid == 0:
        child()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: signal.Signals(n).name)
def test_the_step_is_finished_and_saved(
    number: int, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", signalling(loop.train_step, number, call=3))
        stop = stopped(out=tmp_path)
    assert (stop.number, stop.checkpoint) == (number, tmp_path / "checkpoints" / "step_00000003")
    assert str(stop) == f"stopped by {signal.Signals(number).name} after step 3; checkpoint: {stop.checkpoint}"
    train(Config(**SETTINGS, out=tmp_path, resume=True))
    assert_same_run(tmp_path, whole)


@pytest.mark.parametrize(
    ("function", "call", "settings", "step"),
    [
        ("save_checkpoint", 1, {"checkpoint_every": 2}, 2),
        ("draw_pictures", 1, {"sample_every": 2}, 2),
        ("draw_pictures", 1, {}, 6),
        ("final_metrics", 1, {}, 6),
        ("train_step", 6, {}, 6),
    ],
    ids=["saving", "drawing", "last drawing", "final metrics", "last step"],
)
def test_wherever_the_signal_comes(
    function: str,
    call: int,
    settings: dict[str, object],
    step: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(loop, function, signalling(getattr(loop, function), signal.SIGTERM, call))
        assert stopped(**settings, out=tmp_path).checkpoint == tmp_path / "checkpoints" / f"step_{step:08d}"
    assert not (tmp_path / "summary.json").exists()
    train(Config(**{**SETTINGS, **settings}, out=tmp_path, resume=True))
    assert_same_run(tmp_path, whole)
    assert (tmp_path / "samples" / "step_00000006.png").read_bytes() == (whole / "samples.png").read_bytes()
    assert (tmp_path / "samples" / "step_00000002.png").exists() == ("sample_every" in settings)


@pytest.mark.parametrize("call", range(1, 6))
def test_writing_a_checkpoint_is_finished(call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_module, "_fsync", signalling(checkpoint_module._fsync, signal.SIGTERM, call))
    assert stopped(out=tmp_path, checkpoint_every=2).checkpoint == tmp_path / "checkpoints" / "step_00000002"
    newest = newest_checkpoint(tmp_path / "checkpoints")
    assert newest is not None
    assert newest.step == 2


def test_nothing_is_left_of_a_run_that_was_stopped_while_it_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "load_data", signalling(loop.load_data, signal.SIGTERM))
    stop = stopped(out=tmp_path / "deep" / "run")
    assert stop.checkpoint is None
    assert str(stop) == "stopped by SIGTERM before the first step"
    assert not (tmp_path / "deep").exists()


def test_a_second_signal_stops_at_once() -> None:
    def child() -> None:
        with StopSignals():
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGINT)

    assert dies_of(child) == -signal.SIGINT


def test_two_signals_at_the_same_time(capfd: pytest.CaptureFixture[str]) -> None:
    def child() -> None:
        with StopSignals():
            signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, NUMBERS)

    assert dies_of(child) in (-signal.SIGINT, -signal.SIGTERM)
    assert "race" not in capfd.readouterr().err


def test_a_forked_child_dies_of_its_signal() -> None:
    with StopSignals() as stop:
        assert dies_of(lambda: os.kill(os.getpid(), signal.SIGTERM)) == -signal.SIGTERM
    assert stop.received is None


@pytest.mark.parametrize("handler", [signal.SIG_IGN, lambda *_: None], ids=["ignored", "own handler"])
def test_other_handlers_are_left_alone(handler: object) -> None:
    """As SIGHUP under nohup, and SIGINT in a script's background job."""
    earlier = signal.signal(signal.SIGTERM, handler)
    try:
        with StopSignals() as stop:
            assert signal.getsignal(signal.SIGTERM) is handler
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.received is None
    finally:
        signal.signal(signal.SIGTERM, earlier)


def test_a_library_user_keeps_the_handlers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, seen = loop.train_step, []
    monkeypatch.setattr(loop, "train_step", lambda *a: seen.append(list(map(signal.getsignal, NUMBERS))) or step(*a))
    handlers = [signal.getsignal(n) for n in NUMBERS]
    train(Config(**SETTINGS, out=tmp_path))
    assert seen == [handlers] * 6


def test_in_a_thread_nothing_is_caught(tmp_path: Path) -> None:
    done = []

    def run() -> None:
        with StopSignals() as stop:
            done.append(train(Config(**SETTINGS, out=tmp_path), stop))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert done[0]["steps"] == 6
