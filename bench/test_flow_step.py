"""The flow step against eager PyTorch: noise, interpolation, target, loss and its gradient; then a whole training step.

    pytest bench/test_flow_step.py                  # pytest-benchmark's own table
    python -m bench.test_flow_step                  # ratios of interleaved rounds

What is timed is first compared with float64 at the timed shape.
"""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastflow as ff
from bench._timing import interleaved, report

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(256, 4, 32, 32), (64, 16, 64, 64), (4096, 1024)]
DTYPES = [torch.float32, torch.bfloat16]
PATH = ff.paths.CondOT()
Ways = dict[str, Callable[[], object]]


def step_ways(shape: tuple[int, ...], dtype: torch.dtype, drawn: bool) -> Ways:
    """The flow step alone. The prediction stands in for a model: ``x_t`` times a parameter-like tensor."""
    x1, factor, given = (torch.randn(shape, device=DEVICE).to(dtype) for _ in range(3))
    factor.requires_grad_()
    t = torch.rand(shape[0], device=DEVICE)
    rows = (-1, *(1,) * (len(shape) - 1))
    step = 0

    def fastflow() -> tuple[Tensor, Tensor]:
        nonlocal step
        step += 1
        x0 = ff.GaussianNoise(0, step) if drawn else given
        pred = ff.interpolate(x0, x1, t, path=PATH) * factor
        loss = ff.flow_matching_loss(pred, x0, x1, t, path=PATH)
        return loss, torch.autograd.grad(loss, factor)[0]

    def eager() -> tuple[Tensor, Tensor]:
        x0 = torch.randn_like(x1) if drawn else given
        pred = torch.lerp(x0, x1, t.to(dtype).view(rows)) * factor
        loss = F.mse_loss(pred, x1 - x0)
        return loss, torch.autograd.grad(loss, factor)[0]

    check_step(x1, factor, t, given)
    return {"eager": eager, "fastflow": fastflow}


def check_step(x1: Tensor, factor: Tensor, t: Tensor, x0: Tensor) -> None:
    """Refuse to time a wrong result: the loss and its gradient at this shape against float64."""
    a, f, s = (x.detach().double() for x in (x1, factor, x0))
    f.requires_grad_()
    time = t.double().view(-1, *(1,) * (x1.ndim - 1))
    truth = F.mse_loss(torch.lerp(s, a, time) * f, a - s)
    loss = ff.flow_matching_loss(ff.interpolate(x0, x1, t, path=PATH) * factor, x0, x1, t, path=PATH)
    tolerance = 8 * torch.finfo(x1.dtype).eps
    for got, want in ((loss, truth), (*torch.autograd.grad(loss, factor), *torch.autograd.grad(truth, f))):
        error = (got.double() - want).norm() / want.norm()
        assert error <= tolerance, f"relative error {error:.1e}"


def training_ways() -> Ways:
    """A training step of the digits DiT, batch 128, written with fastflow's ops and with eager PyTorch."""
    torch.manual_seed(0)
    model = ff.nn.DiT(8, 2, 1, hidden_size=128, depth=3, num_heads=4, num_classes=10).to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, foreach=True)
    x1 = torch.randn(128, 1, 8, 8, device=DEVICE)
    y = torch.randint(10, (128,), device=DEVICE)
    step = 0

    def update(loss: Tensor) -> None:
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def fastflow() -> None:
        nonlocal step
        step += 1
        t = ff.paths.sample_times(PATH, 128, seed=0, offset=step, device=DEVICE)
        x0 = ff.GaussianNoise(1, step)
        xt = ff.interpolate(x0, x1, t, path=PATH)
        update(ff.flow_matching_loss(model(xt, t, y), x0, x1, t, path=PATH))

    def eager() -> None:
        t = torch.rand(128, device=DEVICE)
        x0 = torch.randn_like(x1)
        xt = torch.lerp(x0, x1, t.view(-1, 1, 1, 1))
        update(F.mse_loss(model(xt, t, y), x1 - x0))

    return {"eager": eager, "fastflow": fastflow}


@pytest.mark.parametrize("way", ["eager", "fastflow"])
@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step(benchmark, shape, dtype, drawn, way):
    benchmark.group = f"flow step {shape} {dtype} {'drawn' if drawn else 'given'}"
    benchmark(step_ways(shape, dtype, drawn)[way])


@pytest.mark.parametrize("way", ["eager", "fastflow"])
def test_training_step(benchmark, way):
    benchmark.group = "training step of the digits DiT, batch 128"
    benchmark(training_ways()[way])


def main() -> None:
    print(f"{DEVICE}, torch {torch.__version__}, {torch.get_num_threads()} threads; x = times as fast as eager\n")
    print(report("training step, digits DiT, batch 128", interleaved(training_ways(), rounds=60), "eager"))
    for shape in SHAPES:
        for dtype in DTYPES:
            for drawn in (False, True):
                title = f"flow step {shape} {dtype} x0 {'drawn' if drawn else 'given'}"
                print(report(title, interleaved(step_ways(shape, dtype, drawn), rounds=10), "eager"))


if __name__ == "__main__":
    main()
