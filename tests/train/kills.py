"""Kill trainings at random, damage what they wrote, fill the disk, and compare each with a run left alone.

Run by hand: ``python -m tests.train.kills --count 100``. Every trial is a forked process that runs the command line.
Any difference in a bit, any traceback and any exit status but the documented ones is an error.
"""

import argparse
import contextlib
import itertools
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

from fastflow import cli
from fastflow.train.checkpoint import DamagedCheckpointError, list_checkpoints, load_checkpoint, newest_checkpoint
from fastflow.train.log import read_rows

STEPS = 60
SETTINGS = {
    **{"data": "moons", "hidden-size": 8, "depth": 1, "batch-size": 8, "steps": STEPS, "checkpoint-every": 5},
    **{"sample-every": 25, "sample-steps": 1, "eval-samples": 0, "log-every": 3},
}
ARGUMENTS = ["train", *(f"--{name}={value}" for name, value in SETTINGS.items())]
SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1")


def start(out: Path, *more: str, before: Callable[[], None] = lambda: None) -> int:
    """Start the command line in a fork, its output in ``<out>.txt``; return the process id."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 70
    try:
        with (
            out.with_suffix(".txt").open("w", buffering=1) as stream,
            contextlib.redirect_stdout(stream),
            contextlib.redirect_stderr(stream),
        ):
            before()
            cli.main([*ARGUMENTS, "--out", str(out), "--resume", *more])
            status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    finally:
        os._exit(status)


def finish(pid: int) -> int:
    """Wait for a process; return its exit status, as a shell would show it."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return status if status >= 0 else 128 - status


def check(out: Path, status: int, allowed: tuple[int, ...]) -> None:
    """Check the exit status, that nothing printed a traceback, and that no half-written checkpoint counts."""
    printed = out.with_suffix(".txt").read_text()
    assert status in allowed, f"status {status}: {printed}"
    assert "Traceback" not in printed, printed
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest_checkpoint(out / "checkpoints")


def check_same(one: Path, other: Path) -> None:
    """Check that two finished runs hold the same weights, moments and metrics, and the same pictures."""
    a, b = newest_checkpoint(one / "checkpoints"), newest_checkpoint(other / "checkpoints")
    assert a is not None
    assert b is not None
    assert a.step == b.step == STEPS
    for group, tensors in a.tensors.items():
        assert tensors.keys() == b.tensors[group].keys()
        assert all(torch.equal(x, b.tensors[group][name]) for name, x in tensors.items()), group
    assert read_rows(one / "metrics.jsonl") == read_rows(other / "metrics.jsonl")
    assert len(read_rows(one / "metrics.jsonl")) == STEPS
    pictures = [{f.name: f.read_bytes() for f in (run / "samples").iterdir()} for run in (one, other)]
    assert pictures[0].items() >= pictures[1].items()  # a run that ended early drew one more
    assert not list(one.glob(".*")), "a lock or a temporary file is left"


def killed(out: Path, rng: random.Random, seconds: float) -> None:
    """SIGKILL, or one or two other signals, at random moments."""
    while True:
        pid = start(out)
        time.sleep(rng.uniform(0.0, seconds))
        number = rng.choice((signal.SIGKILL, *(getattr(signal, name) for name in SIGNALS)))
        for _ in range(rng.choice((1, 1, 2))):
            os.kill(pid, number)  # a zombie takes it too
            time.sleep(rng.choice((0.0, 0.001, 0.02)))
        status = finish(pid)
        check(out, status, (0, 128 + number))
        if status == 0:
            return


def flipped(out: Path, rng: random.Random, _: float) -> None:
    """One bit of the newest checkpoints flipped, until one is left."""
    finish(start(out, f"--steps={rng.randrange(15, STEPS)}"))
    *damaged, _last = list_checkpoints(out / "checkpoints")
    for folder in damaged[: rng.randrange(1, 1 + len(damaged))]:
        flip(rng.choice(sorted(folder.iterdir())), rng)
    finish_in_peace(out)


def full(out: Path, rng: random.Random, _: float) -> None:
    """No file may exceed a random size: metrics, tensors, manifest, pictures."""
    limit = round(2 ** rng.uniform(6, 17))
    limits = (limit, resource.RLIM_INFINITY)
    status = finish(start(out, before=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits)))
    assert status in (0, 2), status
    finish_in_peace(out)


def renamed(out: Path, rng: random.Random, seconds: float) -> None:
    """The folder gets another name after each stop."""
    names = [out, *(out.with_name(f"{out.name}_{k}") for k in range(3)), out]
    for here, there in itertools.pairwise(names):
        pid = start(here)
        time.sleep(rng.uniform(0.0, seconds))
        os.kill(pid, signal.SIGTERM)
        check(here, finish(pid), (0, 143))
        if here.exists():  # not if it was stopped before the first step
            here.rename(there)
    finish_in_peace(out)


def finish_in_peace(out: Path) -> None:
    status = finish(start(out))
    assert status == 0, out.with_suffix(".txt").read_text()


def flip(file: Path, rng: random.Random) -> None:
    """Flip one random bit of a file."""
    content = bytearray(file.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    file.write_bytes(content)


def check_flips(folder: Path, count: int, rng: random.Random) -> None:
    """Check that no flipped bit changes what is loaded; the E of a number may become a capital."""
    whole = load_checkpoint(folder)
    for _ in range(count):
        file = rng.choice(sorted(folder.iterdir()))
        content = file.read_bytes()
        flip(file, rng)
        with contextlib.suppress(DamagedCheckpointError):
            loaded = load_checkpoint(folder)
            assert file.name == "manifest.json", f"{file} was loaded with a flipped bit"
            assert (loaded.step, loaded.meta) == (whole.step, whole.meta)
        file.write_bytes(content)
    load_checkpoint(folder)


def main() -> None:
    """Run ``--count`` trials of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20, help="trials of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        whole, out = Path(folder) / "whole", Path(folder) / "run"
        started = time.perf_counter()
        finish_in_peace(whole)
        seconds = 1.2 * (time.perf_counter() - started)
        for trial in (killed, flipped, full, renamed):
            for _ in range(options.count):
                shutil.rmtree(out, ignore_errors=True)
                trial(out, rng, seconds)
                check_same(out, whole)
            print(f"{trial.__name__}: {options.count} runs, each ended as the one left alone")
        check_flips(list_checkpoints(whole / "checkpoints")[0], 50 * options.count, rng)
        print(f"{50 * options.count} flipped bits, none of them believed")


if __name__ == "__main__":
    main()
