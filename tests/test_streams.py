"""Streams: new numbers in every draw, shared out among processes, and resumed by any number of them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastflow as ff

ROOT = Path(__file__).parent.parent
PATH = ff.paths.VP()
SHAPE = (3, 5)


def draws(stream, batch, count=3):
    """The numbers of ``count`` steps: noise, and times of both distributions."""
    steps = []
    for _ in range(count):
        noise = stream.noise(batch).materialize((batch, *SHAPE)).flatten(1)
        times = stream.times(PATH, batch), stream.times(PATH, batch, distribution="logit_normal", mean=-0.4, std=1.5)
        steps.append(torch.cat([noise, torch.stack(times, 1)], 1))
    return torch.stack(steps)  # [count, B, ...]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_any_number_of_processes_draws_the_same_numbers(world_size):
    whole = draws(ff.Stream(5), 8)
    parts = [draws(ff.Stream(5, rank=r, world_size=world_size), 8 // world_size) for r in range(world_size)]
    assert torch.equal(torch.cat(parts, 1), whole)


def test_a_draw_is_the_definition():
    stream = ff.Stream(7, rank=2, world_size=3)
    assert stream.noise(4) == ff.GaussianNoise(7, 0, 8)
    times = stream.times(PATH, 4)
    assert torch.equal(times, ff.paths.sample_times(PATH, 4, seed=7, offset=1, first_sample=8))
    assert stream.noise(4) == ff.GaussianNoise(7, 2, 8)


def test_every_draw_of_every_process_is_new():
    """Micro-batches of accumulation, ranks, noise and times: no number occurs twice."""
    steps = torch.cat([draws(ff.Stream(5, rank=r, world_size=4), 2, count=4) for r in range(4)], 1)
    noise = steps[..., :-2].flatten()
    assert noise.unique().numel() == noise.numel()
    times = steps[..., -2:].flatten()
    assert times.unique().numel() == times.numel()


def test_a_loop_as_in_the_readme_accumulates_independent_gradients():
    """The variance of an accumulated gradient falls as 1 / (ranks x micro-batches), as it must for new draws."""
    weight = torch.zeros((), requires_grad=True)
    x1 = torch.zeros(4, 8)

    def gradient(streams, micro_batches):
        for stream in streams:
            for _ in range(micro_batches):
                t, x0 = stream.times(ff.paths.CondOT(), 4), stream.noise(4)
                xt = ff.interpolate(x0, x1, t, path=ff.paths.CondOT())
                ff.flow_matching_loss(weight * xt, x0, x1, t, path=ff.paths.CondOT()).backward()
        total, weight.grad = weight.grad / len(streams) / micro_batches, None
        return total

    single, joined = [ff.Stream(0)], [ff.Stream(0, rank=r, world_size=2) for r in range(2)]
    one = torch.stack([gradient(single, 1) for _ in range(200)])
    four = torch.stack([gradient(joined, 2) for _ in range(200)])
    assert one.var() / four.var() == pytest.approx(4.0, rel=0.6)  # 4 standard deviations; 1 or 2 if draws repeat


@pytest.mark.parametrize("world_size", [1, 2])
def test_a_stream_resumes_in_another_number_of_processes(world_size):
    stream = ff.Stream(5, rank=1, world_size=4)
    draws(stream, 2)
    state = json.loads(json.dumps(stream.state_dict()))
    assert state == {"seed": 5, "draws": 9}
    uninterrupted = ff.Stream(5)
    draws(uninterrupted, 8)
    resumed = [ff.Stream(0, rank=r, world_size=world_size) for r in range(world_size)]
    for other in resumed:
        other.load_state_dict(state)
    parts = [draws(other, 8 // world_size) for other in resumed]
    assert torch.equal(torch.cat(parts, 1), draws(uninterrupted, 8))


def test_noise_of_a_share_does_not_reach_into_the_next():
    noise = ff.Stream(0, rank=1, world_size=2).noise(4)
    noise.materialize((3, 2))
    with pytest.raises(ValueError, match=r"noise was drawn for 4 samples, got shape \(5, 2\)"):
        noise.materialize((5, 2))


def test_a_compiled_step_may_draw():
    torch._dynamo.reset()
    stream, eager = ff.Stream(3, rank=1, world_size=2), ff.Stream(3, rank=1, world_size=2)

    def step(stream, x1):
        t, x0 = stream.times(PATH, 4), stream.noise(4)
        return ff.flow_matching_loss(x1, x0, x1, t, path=PATH)

    compiled = torch.compile(step, backend="eager", fullgraph=True)
    x1 = torch.randn(4, 3)
    for _ in range(4):
        torch.testing.assert_close(compiled(stream, x1), step(eager, x1))
    assert stream.state_dict() == eager.state_dict()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ff.Stream(-1), ValueError, "seed must satisfy 0 <= seed < 2.63, got -1"),
        (lambda: ff.Stream(0.0), TypeError, "seed must be an int, got float"),
        (lambda: ff.Stream(0, rank=True), TypeError, "rank must be an int, got bool"),
        (lambda: ff.Stream(0, world_size="2"), TypeError, "world_size must be an int, got str"),
        (lambda: ff.Stream(0, rank=2, world_size=2), ValueError, "0 <= rank < world_size, got rank 2 and world_size 2"),
        (lambda: ff.Stream(0, rank=-1), ValueError, "rank must satisfy"),
        (lambda: ff.Stream(0, world_size=0), ValueError, "rank must satisfy"),
        (lambda: ff.Stream(0, rank=1).noise(2), ValueError, "got rank 1 and world_size 1"),
        (lambda: ff.Stream(0).noise(-1), ValueError, "batch_size must not be negative, got -1"),
        (lambda: ff.Stream(0).noise(2.0), TypeError, "batch_size must be an int, got float"),
        (lambda: ff.Stream(0).times(PATH, -2), ValueError, "batch_size must not be negative, got -2"),
        (lambda: ff.Stream(0).times(PATH, 2, distribution="beta"), ValueError, "distribution must be one of"),
        (lambda: ff.Stream(0).load_state_dict({"seed": 0}), ValueError, "state must have the keys 'seed' and 'draws'"),
        (lambda: ff.Stream(0).load_state_dict({"seed": 0, "draws": -1}), ValueError, "draws must satisfy"),
        (lambda: ff.Stream(0).load_state_dict({"seed": 0, "draws": 1.5}), TypeError, "draws must be an int, got float"),
        (lambda: ff.Stream(0).load_state_dict({"seed": None, "draws": 1}), TypeError, "seed must be an int"),
        (lambda: ff.Stream(0).load_state_dict(None), TypeError, "state must be a mapping, got NoneType"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_draw_that_fails_is_not_counted():
    stream = ff.Stream(0)
    for bad in (lambda: stream.noise(-1), lambda: stream.times(PATH, 2, distribution="beta")):
        with pytest.raises(ValueError, match="must"):
            bad()
    assert stream.state_dict() == {"seed": 0, "draws": 0}


def test_torchrun_without_a_process_group_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "4")
    stream = ff.Stream(0)
    with pytest.raises(RuntimeError, match="WORLD_SIZE=4 in the environment, but torch"):
        stream.noise(2)
    assert ff.Stream(0, rank=3, world_size=4).noise(2) == ff.GaussianNoise(0, 0, 6)


WORKER = """
import os, sys, torch, torch.distributed as dist
import fastflow as ff
rank, folder = int(sys.argv[1]), sys.argv[2]
stream = ff.Stream(5)  # made before the processes know each other
dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
torch.save((stream.noise(4).materialize((4, 3)), stream.times(ff.paths.VP(), 4)), f"{folder}/{rank}.pt")
os.environ["FASTFLOW_DEBUG"] = "1"
stream.noise(4)
try:
    stream.noise(4 + rank)
except RuntimeError as error:
    print(error)
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_two_real_processes_draw_what_one_does_and_debug_mode_finds_uneven_batches(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
        )
        for rank in (0, 1)
    ]
    outputs = [worker.communicate(timeout=120)[0] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0]
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    whole = ff.Stream(5)
    assert torch.equal(torch.cat([noise for noise, _ in parts]), whole.noise(8).materialize((8, 3)))
    assert torch.equal(torch.cat([times for _, times in parts]), whole.times(PATH, 8))
    for output in outputs:
        assert "every process must make the same draw, got [" in output
        assert "'batch_size': 4" in output
        assert "'batch_size': 5" in output


def test_a_stream_is_saved_with_a_checkpoint(tmp_path):
    stream = ff.Stream(9)
    stream.noise(3)
    torch.save({"stream": stream.state_dict(), "model": nn.Linear(1, 1).state_dict()}, tmp_path / "x.pt")
    other = ff.Stream(0)
    other.load_state_dict(torch.load(tmp_path / "x.pt", weights_only=True)["stream"])
    assert other.noise(3) == stream.noise(3)
    assert repr(other) == "Stream(seed=9, draws=2)"
