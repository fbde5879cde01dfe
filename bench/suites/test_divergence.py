"""The divergence of a Transformer and its gradient, against the loops that people write.

The field is the demo's DiT for digits (64 dimensions, batch 32, frozen weights) and, on a GPU, DiT-B/2 in bfloat16
(latents of 4 × 32 × 32, batch 8), without the exact trace, which would take 4,096 Jacobian products. All ways are given
the same probes. The loops run the model on PyTorch's own ops, with the fastest attention that each can have: "K VJPs"
evaluates the field for every probe, "one graph" only once. "forward, PyTorch's ops" is fastflow's forward mode with
fastflow's attention and PyTorch's ops for the rest of the model.
"""

import copy
import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

import fastflow as ff
from bench.harness import roofline
from bench.harness.case import Case, Entry, Way
from bench.suites.models import DEVICE, DIGITS, INPUT_SHAPES, MODELS, labels, math_attention
from bench.suites.on_pytorch import pytorch_ops
from fastflow.ops.divergence.options import DivergenceOptions
from fastflow.ops.divergence.probes import probes_of

CUDA = DEVICE.type == "cuda"
FORWARD = "forward, PyTorch's ops"
LATENTS = "DiT-B/2"
SHAPES = {DIGITS: (32, *INPUT_SHAPES[DIGITS]), LATENTS: (8, *INPUT_SHAPES[LATENTS])}
DTYPES = {DIGITS: torch.float32, LATENTS: torch.bfloat16}
PROBES = (1, 4, 16)
DRAWN = "fastflow draws its probe in every call, while the tape is given one"
Call = Callable[[], tuple[Tensor]]


@dataclass(frozen=True)
class Problem:
    """A field and the point to evaluate it at. x: ``[B, C, H, W]``; t, y: ``[B]``."""

    model: ff.nn.DiT
    x: Tensor
    t: Tensor
    y: Tensor

    @staticmethod
    def make(name: str) -> "Problem":
        dtype, (batch, *_) = DTYPES[name], SHAPES[name]
        model = MODELS[name]().to(DEVICE, dtype).requires_grad_(False)
        x = torch.randn(SHAPES[name], device=DEVICE).to(dtype)
        return Problem(model, x, torch.rand(batch, device=DEVICE).to(dtype), labels(batch, DEVICE))

    def double(self) -> "Problem":
        return Problem(copy.deepcopy(self.model).double(), self.x.double(), self.t.double(), self.y)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, self.y)

    def field(self, x: Tensor) -> Tensor:
        return self.velocity(x, self.t)

    def recorded(self) -> tuple[Tensor, Tensor]:
        """Return x and its velocity, recorded by autograd."""
        x = self.x.detach().requires_grad_()
        return x, self.field(x)

    def probes(self, num: int) -> Tensor:
        """Return the probes that fastflow draws, ``[K, B, C, H, W]``."""
        return probes_of(DivergenceOptions(), self.x).take(0, num)

    def basis(self) -> Tensor:
        """Return a probe for every dimension, ``[M, B, C, H, W]``."""
        size = self.x[0].numel()
        return torch.eye(size).to(self.x).view(size, 1, *self.x.shape[1:]).expand(size, *self.x.shape)


Products = Callable[[Problem, Tensor], Tensor]  # probes to their Jacobian products, both ``[K, B, C, H, W]``


def on_pytorch(attention: Callable[..., Tensor]) -> Callable[[Products], Products]:
    """Decorate a loop to run the model on PyTorch's ops."""

    def decorate(products: Products) -> Products:
        @functools.wraps(products)
        def run(p: Problem, probes: Tensor) -> Tensor:
            with pytorch_ops(attention, through_tangent=False):
                return products(p, probes)

        return run

    return decorate


@on_pytorch(F.scaled_dot_product_attention)
def vjps(p: Problem, probes: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(*reversed(p.recorded()), e)[0] for e in probes])


@on_pytorch(F.scaled_dot_product_attention)
def vjps_of_one_graph(p: Problem, probes: Tensor) -> Tensor:
    x, value = p.recorded()
    return torch.stack([torch.autograd.grad(value, x, e, retain_graph=True)[0] for e in probes])


@on_pytorch(math_attention)
def vmap_of_vjps(p: Problem, probes: Tensor) -> Tensor:
    return vmap(vjp(p.field, p.x)[1])(probes)[0]


@on_pytorch(math_attention)
def jvps(p: Problem, probes: Tensor) -> Tensor:
    return torch.stack([jvp(p.field, (p.x,), (e,))[1] for e in probes])


def trace(products: Products, p: Problem, probes: Tensor, weight: float) -> tuple[Tensor]:
    """Return ``weight Σ_k ε_k · (J ε_k)``, ``[B]``."""
    dtype = torch.promote_types(p.x.dtype, torch.float32)
    return (weight * (products(p, probes).to(dtype) * probes.to(dtype)).flatten(2).sum((0, 2)),)


def own(p: Problem, **options: object) -> Call:
    @torch.no_grad()
    def call() -> tuple[Tensor]:
        return (ff.divergence(p.field, p.x, **options).divergence,)

    return call


def forward_on_pytorch(p: Problem, **options: object) -> Call:
    def call() -> tuple[Tensor]:
        with pytorch_ops(ff.attention, through_tangent=False):
            return own(p, mode="forward", **options)()

    return call


def estimate_entry(name: str, num: int, cuda: bool = CUDA) -> Entry:
    entry = Entry("divergence", f"{name}, {num} probe{'s' * (num > 1)}", SHAPES[name], DTYPES[name])
    if num != max(PROBES):
        return entry
    one_graph = f"{num} VJPs, one graph"
    return dataclasses.replace(
        entry,
        label=f"divergence, {num} probes, {name}",
        baselines=(f"{num} VJPs", f"{num} JVPs", one_graph, FORWARD),
        readme=(one_graph,) if name == (LATENTS if cuda else DIGITS) else (),
    )


def exact_entry(name: str) -> Entry:
    baselines = (f"{math.prod(INPUT_SHAPES[name])} VJPs, one graph",)
    return Entry("divergence", f"{name}, exact", SHAPES[name], DTYPES[name], f"divergence, exact, {name}", baselines)


def guidance_entry(name: str) -> Entry:
    label = f"mode-seeking guidance, {name}"
    return Entry("guidance", name, SHAPES[name], DTYPES[name], label, ("tape",), reason=DRAWN)


def entries(cuda: bool) -> Iterable[Entry]:
    yield from (
        estimate_entry(name, num, cuda) for name in ((DIGITS, LATENTS) if cuda else (DIGITS,)) for num in PROBES
    )
    yield exact_entry(DIGITS)
    yield guidance_entry(DIGITS)


def estimate_case(name: str, num: int) -> Case:
    """The estimate with ``num`` probes."""
    p = Problem.make(name)
    loops = {"VJP": vjps, "JVP": jvps}
    if num > 1:
        loops = {
            f"{num} VJPs, one graph": vjps_of_one_graph,
            f"{num} VJPs": vjps,
            "vmap of VJPs": vmap_of_vjps,
            f"{num} JVPs": jvps,
        }
    given = {"probes": p.probes(num)}
    rest = {
        FORWARD: forward_on_pytorch(p, **given),
        **{f"fastflow {mode}": own(p, mode=mode, **given) for mode in ("forward", "reverse")},
        "fastflow": own(p, **given),
    }
    return divergence_case(p, estimate_entry(name, num), p.probes(num), 1 / num, loops, rest)


def exact_case(name: str) -> Case:
    """The exact trace: a Jacobian product for each dimension, so fewer loops are timed."""
    p = Problem.make(name)
    basis = p.basis()
    loops = {f"{len(basis)} VJPs, one graph": vjps_of_one_graph, "vmap of VJPs": vmap_of_vjps}
    modes = {f"fastflow {mode}": own(p, method="exact", mode=mode) for mode in ("forward", "reverse")}
    return divergence_case(p, exact_entry(name), basis, 1, loops, modes | {"fastflow": own(p, method="exact")})


def divergence_case(
    p: Problem, entry: Entry, probes: Tensor, weight: float, loops: Mapping[str, Products], rest: Mapping[str, Call]
) -> Case:
    def truth() -> tuple[Tensor]:
        return trace(vjps_of_one_graph, p.double(), probes.double(), weight)

    theirs = {name: functools.partial(trace, products, p, probes, weight) for name, products in loops.items()}
    floor = roofline.divergence(roofline.network(p.model, len(p.x)), len(probes))
    return _case(entry, {**theirs, **rest}, truth, floor)


def on_tape(p: Problem, probe: Tensor) -> tuple[Tensor]:
    x, value = p.recorded()
    (product,) = torch.autograd.grad(value, x, probe, create_graph=True)
    return torch.autograd.grad(-(product * probe).sum(), x)


def guidance_case(name: str) -> Case:
    """The gradient of a one-probe divergence by autograd's tape, by torch.func and by mode-seeking guidance."""
    p = Problem.make(name)
    (probe,) = p.probes(1)

    def by_tape() -> tuple[Tensor]:
        with pytorch_ops(through_tangent=False):
            return on_tape(p, probe)

    def by_func() -> tuple[Tensor]:
        with pytorch_ops():
            return (grad(lambda x: -(vjp(p.field, x)[1](probe)[0] * probe).sum())(p.x),)

    @torch.no_grad()
    def guided() -> tuple[Tensor]:
        return (ff.mode_guidance(p.velocity, p.x, p.t),)

    def truth() -> tuple[Tensor]:
        with pytorch_ops():
            return on_tape(p.double(), probe.double())

    floor = roofline.guidance(roofline.network(p.model, len(p.x)))
    ways = {"tape": by_tape, "torch.func": by_func, "fastflow": guided}
    return _case(guidance_entry(name), ways, truth, floor)


def _case(entry: Entry, calls: Mapping[str, Call], truth: Call, floor: roofline.Floor) -> Case:
    return Case(
        entry,
        ways={name: Way(call) for name, call in calls.items()},
        truth=truth,
        budget=1e-4 if entry.dtype == torch.float32 else 0.05,
        floor=floor,
    )


needs_gpu = pytest.mark.skipif(not CUDA, reason="a Jacobian product takes seconds on a CPU")


@pytest.mark.parametrize("num", PROBES, ids=["1 probe", "4 probes", "16 probes"])
@pytest.mark.parametrize("name", [DIGITS, pytest.param(LATENTS, marks=needs_gpu)])
def test_divergence(record, name, num):
    torch.manual_seed(0)
    record(estimate_case(name, num))


def test_exact_divergence(record):
    torch.manual_seed(0)
    record(exact_case(DIGITS))


def test_guidance(record):
    torch.manual_seed(0)
    record(guidance_case(DIGITS))
