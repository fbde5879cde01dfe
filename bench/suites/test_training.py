"""One training step of a DiT with its optimizer: fastflow against the same model on PyTorch's own ops.

Three losses, which differ in their derivatives: the gradient alone (CFM), a JVP whose tangent is a detached target
(MeanFlow), a JVP that the gradient flows through (tangent). Beside the last two, fastflow's plain step (CFM) of the
same model is timed in the same rounds; beside the first, the baseline a second time, which shows the noise. Presets
take 32 × 32 × 4 latents; on a GPU, float32 parameters under bfloat16 autocast.
"""

import functools
import math
from collections.abc import Callable, Iterable

import pytest
import torch

import fastflow as ff
from bench.harness import roofline, rows
from bench.harness.case import PLAIN_STEP, Case, Entry, Way
from bench.harness.memory import peak_bytes
from bench.harness.rows import dtype_name
from bench.harness.timing import interleaved, percentiles, synchronize
from bench.suites.largest_batch import largest, predicted
from bench.suites.models import DEVICE, DIGITS, INPUT_SHAPES, MODELS
from bench.suites.test_attention import CALL
from bench.suites.training import Batch, Training

CUDA = DEVICE.type == "cuda"
PRESETS, LOSSES = ("DiT-S/2", "DiT-B/2"), ("CFM", "MeanFlow", "tangent")
ON_CPU = [
    *((DIGITS, loss, 32) for loss in LOSSES),
    *(("DiT-S/2", loss, 1) for loss in LOSSES),
    ("DiT-S/2", "tangent", 4),
]
ON_GPU = [(name, loss, 64) for name in PRESETS for loss in LOSSES]
COMPILED = ("DiT-S/2", "MeanFlow")  # Inductor takes most of a minute for each way, so only --full compiles the others
UNCOMPILED = {"PyTorch compiled": "Inductor refuses a gradient through a linear layer's tangent (pytorch#177261)"}
LARGEST = ("DiT-B/2", "tangent")
BASELINE, AGAIN = "PyTorch", "PyTorch again"


def dtype_of(cuda: bool) -> torch.dtype:
    return torch.bfloat16 if cuda else torch.float32


DTYPE = dtype_of(CUDA)


def entry(name: str, loss: str, size: int, cuda: bool = CUDA) -> Entry:
    shown = loss != "CFM" and name == ("DiT-B/2" if cuda else "DiT-S/2") and size in (1, 64)
    return Entry(
        op="training step",
        mode=f"{name}, {loss}",
        shape=(size, *INPUT_SHAPES[name]),
        dtype=dtype_of(cuda),
        label=f"training step, {name}, {loss} loss, batch {size}",
        baselines=(BASELINE,),
        readme=(BASELINE,) if shown else (),
        reason=CALL if name == DIGITS else "",
    )


def entries(cuda: bool) -> Iterable[Entry]:
    return (entry(*point, cuda) for point in (ON_GPU if cuda else ON_CPU))


def case(name: str, loss: str, size: int, compiled: bool) -> Case:
    training = Training(MODELS[name](), loss, DTYPE)
    batch = Batch.draw(size, INPUT_SHAPES[name])

    def way(name: str) -> Way:
        return Way(functools.partial(training.step, name, batch), functools.partial(training.gradients, name, batch))

    ways, skipped = {BASELINE: way(BASELINE)}, UNCOMPILED if loss == "tangent" else {}
    if loss == "CFM":
        ways[AGAIN] = way(BASELINE)
    else:
        ways[PLAIN_STEP] = plain(training, batch)
    if compiled:
        ways |= {name: way(name) for name in (f"{BASELINE} compiled", "fastflow compiled") if name not in skipped}
    return Case(
        entry(name, loss, size),
        ways=ways | {"fastflow": way("fastflow")},
        truth=functools.partial(training.truth, batch),
        budget=1e-1 if CUDA else 1e-4,
        factor=3.0 if CUDA else math.inf,
        floor=floor(training.model, loss, size),
        skipped=skipped,
        least_rounds=5 if CUDA or size > 1 else 15,
    )


def plain(training: Training, batch: Batch) -> Way:
    """fastflow's step without a tangent, as a yardstick."""
    step = training.plain()
    calls = functools.partial(step.step, "fastflow", batch), functools.partial(step.gradients, "fastflow", batch)
    return Way(*calls, truth=functools.partial(step.truth, batch))


def floor(model: ff.nn.DiT, loss: str, size: int) -> roofline.Floor:
    """Return the floor of a training step.

    A JVP adds a pass through every layer, with four GEMMs in attention for the forward's two. The gradient through it
    adds a second backward, with eight GEMMs for the first one's four, and none in the first layers.
    """
    net = roofline.network(model, size)
    step = roofline.training_step(net)
    jvp = net.forward + net.attention
    more = {"CFM": 0, "MeanFlow": jvp, "tangent": jvp + 2 * jvp - 3 * net.first}
    return roofline.Floor(step.flops + more[loss], step.bytes)


@pytest.mark.parametrize(("name", "loss", "size"), ON_GPU if CUDA else ON_CPU)
def test_training_step(record, name, loss, size):
    torch.manual_seed(0)
    record(case(name, loss, size, compiled=CUDA and (name, loss) == COMPILED))


@pytest.mark.full
@pytest.mark.skipif(not CUDA, reason="compilation takes longer than all other cases on a CPU")
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", PRESETS)
def test_compiled_training_step(record, name, loss):
    torch.manual_seed(0)
    record(case(name, loss, 64, compiled=True))


@pytest.mark.skipif(not CUDA, reason="fills the memory of a GPU")
@pytest.mark.parametrize(
    ("name", "loss"),
    [LARGEST, *(pytest.param(n, x, marks=pytest.mark.full) for n in PRESETS for x in LOSSES if (n, x) != LARGEST)],
)
def test_largest_batch(name, loss, request):
    torch.manual_seed(0)
    training = Training(MODELS[name](), loss, DTYPE)
    found = [largest_batch_row(training, name, loss, way) for way in (BASELINE, "fastflow")]
    if request.config.getoption("--record"):
        rows.append(found)
    with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        for r in found:
            print(f"\n{r['mode']}, {r['implementation']}: batch {r['batch']}, {r['images_per_second']} images/s")


def largest_batch_row(training: Training, name: str, loss: str, way: str) -> rows.Row:
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

    fits(1)  # creates the optimizer's moments and empties the allocator's cache
    free, _ = torch.cuda.mem_get_info()
    size = largest(fits, predicted(lambda size: peak_bytes(call(size)), 16, free))
    times = percentiles(interleaved({way: call(size)}, rounds=3, warmup=1)[way])
    return {
        "op": "largest batch",
        "mode": f"{name}, {loss}",
        "shape": list(shape),
        "dtype": dtype_name(DTYPE),
        "implementation": way,
        "launch": "eager",
        "baseline": BASELINE,
        "batch": size,
        "ms": times.p50,
        "images_per_second": round(1e3 * size / times.p50),
        **rows.machine(),
    }
