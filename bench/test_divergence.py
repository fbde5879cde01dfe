"""The divergence of a Transformer and its uses, against the loops that people write.

    pytest bench/test_divergence.py                 # pytest-benchmark's own table
    python -m bench.test_divergence                 # ratios of interleaved rounds

The field is the digits DiT at batch 32. What is timed is first compared with a plain loop at the timed shape.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import fastflow as ff
from bench._timing import interleaved, report

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NUM_PROBES = 16
Ways = dict[str, Callable[[], Tensor]]


class Problem:
    """A DiT whose Jacobian is not zero, a batch, and sixteen probes."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model = ff.nn.DiT(8, 2, 1, hidden_size=96, depth=4, num_heads=4, num_classes=10).to(DEVICE)
        for p in self.model.parameters():
            if not p.any():
                torch.nn.init.normal_(p, std=0.05)
        self.model.requires_grad_(False)
        self.x = torch.randn(32, 1, 8, 8, device=DEVICE)
        self.t = torch.rand(32, device=DEVICE)
        self.y = torch.randint(10, (32,), device=DEVICE)
        self.probes = torch.randn(NUM_PROBES, *self.x.shape, device=DEVICE).sign()

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, self.y)

    def field(self, x: Tensor) -> Tensor:
        return self.velocity(x, self.t)

    def recorded(self) -> tuple[Tensor, Tensor]:
        x = self.x.clone().requires_grad_()
        with torch.enable_grad():
            return x, self.field(x)


def estimate_ways() -> Ways:
    """Sixteen probes: each on its own, and together."""
    p = Problem()

    def dots(products: list[Tensor]) -> Tensor:
        return (torch.stack(products) * p.probes).flatten(2).sum(2).mean(0)

    def vjps() -> Tensor:
        return dots([torch.autograd.grad(*reversed(p.recorded()), e)[0] for e in p.probes])

    def jvps() -> Tensor:
        return dots([torch.func.jvp(p.field, (p.x,), (e,))[1] for e in p.probes])

    def fastflow(mode: str) -> Callable[[], Tensor]:
        return lambda: ff.divergence(p.field, p.x, probes=p.probes, mode=mode).divergence

    ways = {"16 VJPs": vjps, "16 JVPs": jvps, "fastflow reverse": fastflow("reverse")}
    return checked({**ways, "fastflow forward": fastflow("forward"), "fastflow auto": fastflow("auto")})


def exact_ways() -> Ways:
    """All 64 diagonal elements: one gradient each over one retained graph, and together."""
    p = Problem()

    def loop() -> Tensor:
        x, value = p.recorded()
        with torch.enable_grad():
            sums = value.flatten(1).sum(0).unbind()
        grads = [torch.autograd.grad(s, x, retain_graph=True)[0].flatten(1)[:, j] for j, s in enumerate(sums)]
        return torch.stack(grads).sum(0)

    return checked({"loop": loop, "fastflow": lambda: ff.divergence(p.field, p.x, method="exact").divergence})


def guidance_ways() -> Ways:
    """The gradient of a one-probe divergence: on autograd's tape, by torch.func, and mode-seeking guidance."""
    p = Problem()
    probes = ff.ops.divergence.Estimator()._draw(p.x, 0, 1)[0]

    def tape() -> Tensor:
        x, value = p.recorded()
        with torch.enable_grad():
            (product,) = torch.autograd.grad(value, x, probes, create_graph=True)
            return torch.autograd.grad(-(product * probes).sum(), x)[0]

    def func() -> Tensor:
        return torch.func.grad(lambda x: -(torch.func.vjp(p.field, x)[1](probes)[0] * probes).sum())(p.x)

    return checked({"tape": tape, "torch.func": func, "fastflow": lambda: ff.mode_guidance(p.velocity, p.x, p.t)})


def checked(ways: Ways) -> Ways:
    """Refuse to time ways that disagree."""
    with torch.no_grad():
        first, *others = (call() for call in ways.values())
    for name, other in zip(list(ways)[1:], others, strict=True):
        error = (other - first).norm() / first.norm()
        assert error < 1e-4, f"{name}: relative error {error:.1e}"
    return ways


BENCHMARKS = {"estimate": estimate_ways, "exact": exact_ways, "guidance": guidance_ways}
BASELINES = {"estimate": ("16 VJPs", "16 JVPs"), "exact": ("loop",), "guidance": ("tape", "torch.func")}


@pytest.mark.parametrize(
    ("what", "way"),
    [
        *[("estimate", w) for w in ("16 VJPs", "16 JVPs", "fastflow reverse", "fastflow forward")],
        *[("exact", w) for w in ("loop", "fastflow")],
        *[("guidance", w) for w in ("tape", "torch.func", "fastflow")],
    ],
)
def test_divergence(benchmark, what, way):
    benchmark.group = f"divergence of the digits DiT, batch 32: {what}"
    ways = BENCHMARKS[what]()
    with torch.no_grad():
        benchmark(ways[way])


def main() -> None:
    for what, make in BENCHMARKS.items():
        with torch.no_grad():
            seconds = interleaved(make(), rounds=7, warmup=1)
        for baseline in BASELINES[what]:
            print(report(str(make.__doc__), seconds, baseline))


if __name__ == "__main__":
    main()
