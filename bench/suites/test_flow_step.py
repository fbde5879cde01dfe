"""The flow step against eager and compiled PyTorch, alone and in a training step of the demo's DiT.

A flow step is x_t, then the loss of a given prediction and its gradient. The compiled baseline is two functions, x_t
and the loss, because the model runs between them. Noise is given, or drawn in each call, by fastflow as a function of
the step.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Iterable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastflow as ff
from bench.harness import roofline
from bench.harness.case import Case, Entry, Way
from bench.harness.rows import dtype_name
from bench.suites.models import DEVICE, DIGITS, INPUT_SHAPES, digits_dit, labels

CUDA = DEVICE.type == "cuda"
PATH = ff.paths.CondOT()
DTYPES = [torch.float32, torch.bfloat16]
BATCH = 128
DRAW = "noise that is a function of the step needs more arithmetic than `torch.randn`"
SUM = (
    "the reference adds a path's terms in fp32 one after another, while `lerp` makes one pass in the tensors' own dtype"
)
Step = Callable[[Tensor, Tensor | None, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]


def shapes(cuda: bool) -> list[tuple[int, ...]]:
    return [(256, 4, 32, 32), (64, 16, 64, 64), *([(4096, 1024)] if cuda else [])]


SHAPES = shapes(CUDA)
COMPILED = SHAPES[: 2 if CUDA else 1]  # compiling all shapes would take most of the suite's time


def step_entry(shape: tuple[int, ...], dtype: torch.dtype, drawn: bool, cuda: bool = CUDA) -> Entry:
    mode = "drawn noise" if drawn else "given noise"
    if shape != SHAPES[0]:  # the first is the same on CPUs and GPUs
        return Entry("flow step", mode, shape, dtype)
    return Entry(
        op="flow step",
        mode=mode,
        shape=shape,
        dtype=dtype,
        label=f"flow step, {mode}, {'fp32' if dtype == torch.float32 else 'bf16'}",
        baselines=("eager", "compiled"),
        readme=("eager",) if dtype == (torch.bfloat16 if cuda else torch.float32) else (),
        reason=DRAW if drawn else SUM,
    )


def training_entry() -> Entry:
    shape = (BATCH, *INPUT_SHAPES[DIGITS])
    label = f"training step, {DIGITS}, CFM loss, batch {BATCH}"
    return Entry("training step", DIGITS, shape, torch.float32, label, ("eager",), reason=DRAW)


def entries(cuda: bool) -> Iterable[Entry]:
    grid = itertools.product(shapes(cuda), DTYPES, (False, True))
    return (*(step_entry(*point, cuda) for point in grid), training_entry())


def eager_position(x0: Tensor | None, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    x0 = torch.randn_like(x1) if x0 is None else x0
    return x0, torch.lerp(x0, x1, t.to(x1.dtype).view(-1, *(1,) * (x1.ndim - 1)))


def eager_loss(pred: Tensor, x0: Tensor, x1: Tensor) -> Tensor:
    return F.mse_loss(pred, x1 - x0)


def pytorch_step(position: Callable, loss: Callable) -> Step:
    def step(x1: Tensor, x0: Tensor | None, t: Tensor, pred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0, xt = position(x0, x1, t)
        pred = pred.detach().requires_grad_()
        value = loss(pred, x0, x1)
        return xt, value, torch.autograd.grad(value, pred)[0]

    return step


def fastflow_step(x1: Tensor, x0: ff.GaussianNoise | Tensor, t: Tensor, pred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    xt, pred = ff.interpolate(x0, x1, t, path=PATH), pred.detach().requires_grad_()
    loss = ff.flow_matching_loss(pred, x0, x1, t, path=PATH)
    return xt, loss, torch.autograd.grad(loss, pred)[0]


def flow_matching_step() -> Step | None:
    """Return the step of the ``flow_matching`` package, None if it is not installed; it draws no noise itself."""
    try:
        from flow_matching.path import CondOTProbPath
    except ImportError:
        return None
    path = CondOTProbPath()

    def step(x1: Tensor, x0: Tensor | None, t: Tensor, pred: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pred = pred.detach().requires_grad_()
        sample = path.sample(x_0=torch.randn_like(x1) if x0 is None else x0, x_1=x1, t=t)
        loss = F.mse_loss(pred, sample.dx_t.to(pred.dtype))
        return sample.x_t, loss, torch.autograd.grad(loss, pred)[0]

    return step


def step_case(shape: tuple[int, ...], dtype: torch.dtype, drawn: bool) -> Case:
    x1, given, pred = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(3))
    t = torch.rand(shape[0], device=DEVICE)
    noise = ff.GaussianNoise(0)
    x0 = noise.materialize(shape, device=DEVICE) if drawn else given
    offsets = itertools.count(1)

    def way(step: Step) -> Way:
        check = functools.partial(step, x1, x0.to(dtype), t, pred)
        return Way(functools.partial(step, x1, None, t, pred), check) if drawn else Way(check)

    def draw() -> tuple[Tensor, ...]:
        return fastflow_step(x1, ff.GaussianNoise(0, next(offsets)), t, pred)

    def truth() -> tuple[Tensor, ...]:
        return pytorch_step(eager_position, eager_loss)(x1.double(), x0.double(), t.double(), pred.double())

    ways, skipped = {"eager": way(pytorch_step(eager_position, eager_loss))}, {}
    if shape in COMPILED:
        compiled = (torch.compile(f, dynamic=False) for f in (eager_position, eager_loss))
        ways["compiled"] = way(pytorch_step(*compiled))
    if (theirs := flow_matching_step()) is not None:
        ways["flow_matching"] = way(theirs)
    else:
        skipped["flow_matching"] = "not installed"
    ways["fastflow"] = Way(draw, lambda: fastflow_step(x1, noise, t, pred)) if drawn else way(fastflow_step)
    return Case(
        step_entry(shape, dtype, drawn),
        ways=ways,
        truth=truth,
        budget=8 * torch.finfo(dtype).eps,
        floor=roofline.flow_step(shape, dtype, drawn),
        note="drawn by NumPy, as a function of the step" if drawn and not CUDA else "",
        skipped=skipped,
    )


class Training:
    """A copy of a model, with AdamW. loss: from model, x0 (a tensor or GaussianNoise), x1, t and y."""

    def __init__(self, model: ff.nn.DiT, loss: Callable[..., Tensor], x1: Tensor, y: Tensor) -> None:
        self.model = copy.deepcopy(model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, foreach=True)
        self.loss, self.x1, self.y = loss, x1, y

    def update(self, x0: Tensor | ff.GaussianNoise, t: Tensor) -> tuple[Tensor]:
        loss = self.loss(self.model, x0, self.x1, t, self.y)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return (loss.detach(),)

    def gradients(self, x0: Tensor, t: Tensor) -> tuple[Tensor, ...]:
        """Return the loss and its gradient in all parameters, without a step."""
        loss = self.loss(self.model, x0, self.x1, t, self.y)
        return loss, *torch.autograd.grad(loss, tuple(self.model.parameters()))


def training_case() -> Case:
    model = digits_dit().to(DEVICE)
    x0, x1 = torch.randn(2, *training_entry().shape, device=DEVICE)
    t, y = torch.rand(BATCH, device=DEVICE), labels(BATCH, DEVICE)
    offsets = itertools.count(1)

    def eager(model: ff.nn.DiT, x0: Tensor, x1: Tensor, t: Tensor, y: Tensor) -> Tensor:
        _, xt = eager_position(x0, x1, t)
        return eager_loss(model(xt, t, y), x0, x1)

    def fastflow(model: ff.nn.DiT, x0: Tensor | ff.GaussianNoise, x1: Tensor, t: Tensor, y: Tensor) -> Tensor:
        xt = ff.interpolate(x0, x1, t, path=PATH)
        return ff.flow_matching_loss(model(xt, t, y), x0, x1, t, path=PATH)

    theirs, again, ours = (Training(model, loss, x1, y) for loss in (eager, eager, fastflow))
    exact = Training(model.double(), eager, x1.double(), y)

    def update() -> tuple[Tensor]:
        offset = next(offsets)
        times = ff.paths.sample_times(PATH, BATCH, seed=0, offset=offset, device=DEVICE)
        return ours.update(ff.GaussianNoise(1, offset), times)

    def on_pytorch(training: Training) -> Way:
        return Way(
            lambda: training.update(torch.randn_like(x1), torch.rand(BATCH, device=DEVICE)),
            lambda: training.gradients(x0, t),
        )

    return Case(
        training_entry(),
        ways={
            "eager": on_pytorch(theirs),
            "fastflow": Way(update, lambda: ours.gradients(x0, t)),
            "eager again": on_pytorch(again),  # shows how far two timings of the same code differ
        },
        truth=lambda: exact.gradients(x0.double(), t.double()),
        budget=1e-4,
        floor=roofline.training_step(roofline.network(theirs.model, BATCH)),
        graph=False,
        least_rounds=300,
    )


@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_flow_step(record, shape, dtype, drawn):
    torch.manual_seed(0)
    record(step_case(shape, dtype, drawn))


def test_training_step(record):
    torch.manual_seed(0)
    record(training_case())
