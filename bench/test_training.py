"""One training step of a DiT, optimizer included: fastflow's ops against the same model on PyTorch's attention.

Three losses, which differ in the derivatives that they take: the gradient (CFM), a JVP whose tangent is a target
(MeanFlow), a JVP that the gradient passes through (TVM). PyTorch's attention is the fastest it has where no tangent
passes, and math where one does. Presets take 32 × 32 × 4 latents; on a GPU float32 parameters under bfloat16 autocast.
"""

import functools
import math
from collections.abc import Callable

import pytest
import torch

import fastflow as ff
from bench import _rows, roofline
from bench._case import Case, Way
from bench._largest import largest, predicted
from bench._memory import peak_bytes
from bench._models import awake, digits_dit
from bench._timing import interleaved, percentiles, synchronize
from bench._training import DEVICE, Batch, Training

CUDA = DEVICE.type == "cuda"
DTYPE = torch.bfloat16 if CUDA else torch.float32


def preset(name: str) -> ff.nn.DiT:
    return awake(ff.nn.DiT.preset(name, num_classes=10))


MODELS: dict[str, Callable[[], ff.nn.DiT]] = {
    "digits DiT": digits_dit,
    "DiT-S/2": functools.partial(preset, "S/2"),
    "DiT-B/2": functools.partial(preset, "B/2"),
}
PRESETS, LOSSES = ("DiT-S/2", "DiT-B/2"), ("CFM", "MeanFlow", "TVM")
ON_CPU = [("digits DiT", "MeanFlow", 32), ("digits DiT", "TVM", 32), ("DiT-S/2", "CFM", 1), ("DiT-S/2", "TVM", 1)]
ON_GPU = [(name, loss, 64) for name in PRESETS for loss in LOSSES]
COMPILED = ("DiT-S/2", "MeanFlow")  # inductor takes most of a minute for each way: --full compiles the others
UNCOMPILED = {"compiled": "inductor fails on a gradient through a linear layer's tangent (pytorch#177261)"}
LARGEST = ("DiT-B/2", "TVM")


def baseline(loss: str) -> str:
    return "flash" if loss == "CFM" else "math"


def case(name: str, loss: str, size: int, compiled: bool) -> Case:
    training = Training(MODELS[name](), loss, DTYPE)
    batch = Batch.draw(size, training.model.input_shape)
    ways = [baseline(loss), "fastflow"]
    if compiled:
        ways = [ways[0], f"{ways[0]} compiled", "fastflow", "fastflow compiled"]
    return Case(
        op="training step",
        mode=f"{name}, {loss}",
        shape=tuple(batch.x1.shape),
        dtype=DTYPE,
        ways={
            way: Way(functools.partial(training.step, way, batch), functools.partial(training.gradients, way, batch))
            for way in ways
        },
        truth=functools.partial(training.truth, batch),
        budget=1e-1 if CUDA else 1e-4,
        factor=3.0 if CUDA else math.inf,
        floor=floor(training.model, loss, size),
        skipped=UNCOMPILED if loss == "TVM" else {},
        least_rounds=5 if CUDA else 15,
    )


def floor(model: ff.nn.DiT, loss: str, size: int) -> roofline.Floor:
    """That of plain training; a JVP adds a pass through every layer, of four products in attention for the forward's
    two; the gradient through it a second backward, of eight for the first one's four, but none in the first layers."""
    net = roofline.network(model, size)
    plain = roofline.training_step(net)
    jvp = net.forward + net.attention
    more = {"CFM": 0, "MeanFlow": jvp, "TVM": jvp + 2 * jvp - 3 * net.first}
    return roofline.Floor(plain.flops + more[loss], plain.bytes)


@pytest.mark.parametrize(("name", "loss", "size"), ON_GPU if CUDA else ON_CPU)
def test_training_step(record, name, loss, size):
    torch.manual_seed(0)
    record(case(name, loss, size, compiled=CUDA and (name, loss) == COMPILED))


@pytest.mark.full
@pytest.mark.skipif(not CUDA, reason="compiling takes longer than all else on a CPU")
@pytest.mark.parametrize("loss", ["CFM", "MeanFlow"])
@pytest.mark.parametrize("name", PRESETS)
def test_compiled_training_step(record, name, loss):
    torch.manual_seed(0)
    record(case(name, loss, 64, compiled=True))


@pytest.mark.skipif(not CUDA, reason="a GPU's memory is what is filled")
@pytest.mark.parametrize(
    ("name", "loss"),
    [LARGEST, *(pytest.param(n, x, marks=pytest.mark.full) for n in PRESETS for x in LOSSES if (n, x) != LARGEST)],
)
def test_largest_batch(name, loss, request):
    torch.manual_seed(0)
    training = Training(MODELS[name](), loss, DTYPE)
    rows = [largest_batch_row(training, name, loss, way) for way in (baseline(loss), "fastflow")]
    if request.config.getoption("--record"):
        _rows.append(rows)
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        for r in rows:
            print(f"\n{r['mode']}, {r['implementation']}: batch {r['batch']}, {r['images_per_second']} images/s")


def largest_batch_row(training: Training, name: str, loss: str, way: str) -> _rows.Row:
    shape = training.model.input_shape

    def call(size: int) -> Callable[[], object]:
        return functools.partial(training.step, way, Batch.draw(size, shape))

    def fits(size: int) -> bool:
        try:
            call(size)()
            synchronize()
            done = True
        except torch.OutOfMemoryError:
            done = False
        training.optimizer.zero_grad()
        torch.cuda.empty_cache()
        return done

    fits(1)  # the optimizer has its moments, the allocator nothing to spare
    free, _ = torch.cuda.mem_get_info()
    size = largest(fits, predicted(lambda size: peak_bytes(call(size)), 16, free))
    times = percentiles(interleaved({way: call(size)}, rounds=3, warmup=1)[way])
    return {
        "op": "largest batch",
        "mode": f"{name}, {loss}",
        "shape": list(shape),
        "dtype": str(DTYPE).removeprefix("torch."),
        "implementation": way,
        "launch": "eager",
        "baseline": baseline(loss),
        "batch": size,
        "ms": times.p50,
        "images_per_second": round(1e3 * size / times.p50),
        **_rows.machine(),
    }
