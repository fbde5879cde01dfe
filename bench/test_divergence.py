"""The divergence of a Transformer and its gradient, against the loops that people write.

The field is the demo's DiT for digits (64 dimensions, batch 32) and, on a GPU, DiT-B/2 in bfloat16 (latents of
4 × 32 × 32, batch 8), of which the exact trace would take 4,096 products and is left out. It is the same in every way,
on fastflow's attention: what differs is how its Jacobian products are taken. "K VJPs" evaluates the field for every
probe, "one graph" only once. fastflow draws its probes in every call; the others are given the same.
"""

import copy
import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

import fastflow as ff
from bench import roofline
from bench._case import Case, Way
from bench._models import awake, digits_dit, labels
from fastflow.ops.divergence.options import DivergenceOptions
from fastflow.ops.divergence.probes import probes_of

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
OTHER_MODE = "reverse" if CUDA else "forward"  # than the one that mode="auto" takes without gradients
DIGITS, LATENTS = "digits DiT", "DiT-B/2"
Call = Callable[[], tuple[Tensor]]


@dataclass(frozen=True)
class Problem:
    """A field, and where it is evaluated. x: ``[B, C, H, W]``, t and y: ``[B]``."""

    model: ff.nn.DiT
    x: Tensor
    t: Tensor
    y: Tensor

    @staticmethod
    def make(name: str) -> "Problem":
        if name == DIGITS:
            model, batch, dtype = digits_dit(), 32, torch.float32
        else:
            model, batch, dtype = awake(ff.nn.DiT.preset("B/2", num_classes=10)), 8, torch.bfloat16
        model = model.to(DEVICE, dtype).requires_grad_(False)
        x = torch.randn(batch, *model.input_shape, device=DEVICE).to(dtype)
        return Problem(model, x, torch.rand(batch, device=DEVICE).to(dtype), labels(batch, DEVICE))

    def double(self) -> "Problem":
        return Problem(copy.deepcopy(self.model).double(), self.x.double(), self.t.double(), self.y)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, self.y)

    def field(self, x: Tensor) -> Tensor:
        return self.velocity(x, self.t)

    def recorded(self) -> tuple[Tensor, Tensor]:
        """x and its velocity on autograd's tape."""
        x = self.x.detach().requires_grad_()
        return x, self.field(x)

    def probes(self, num: int) -> Tensor:
        """Those that fastflow draws, ``[K, B, C, H, W]``."""
        return probes_of(DivergenceOptions(), self.x).take(0, num)

    def basis(self) -> Tensor:
        """A probe for every dimension, ``[M, B, C, H, W]``."""
        size = self.x[0].numel()
        return torch.eye(size).to(self.x).view(size, 1, *self.x.shape[1:]).expand(size, *self.x.shape)


Products = Callable[[Problem, Tensor], Tensor]  # with all probes ``[K, B, C, H, W]``, of the same shape


def vjps(p: Problem, probes: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(*reversed(p.recorded()), e)[0] for e in probes])


def vjps_of_one_graph(p: Problem, probes: Tensor) -> Tensor:
    x, value = p.recorded()
    return torch.stack([torch.autograd.grad(value, x, e, retain_graph=True)[0] for e in probes])


def vmap_of_vjps(p: Problem, probes: Tensor) -> Tensor:
    return vmap(vjp(p.field, p.x)[1])(probes)[0]


def jvps(p: Problem, probes: Tensor) -> Tensor:
    return torch.stack([jvp(p.field, (p.x,), (e,))[1] for e in probes])


def trace(products: Products, p: Problem, probes: Tensor, weight: float) -> tuple[Tensor]:
    """``weight Σ_k ε_k · (J ε_k)``, ``[B]``."""
    dtype = torch.promote_types(p.x.dtype, torch.float32)
    return (weight * (products(p, probes).to(dtype) * probes.to(dtype)).flatten(2).sum((0, 2)),)


def own(p: Problem, **options: object) -> Call:
    @torch.no_grad()
    def call() -> tuple[Tensor]:
        return (ff.divergence(p.field, p.x, **options).divergence,)

    return call


def estimate_case(name: str, num: int) -> Case:
    """By so many probes."""
    p = Problem.make(name)
    loops = {"VJP": vjps, "JVP": jvps}
    if num > 1:
        loops = {
            f"{num} VJPs, one graph": vjps_of_one_graph,
            f"{num} VJPs": vjps,
            "vmap of VJPs": vmap_of_vjps,
            f"{num} JVPs": jvps,
        }
    ours = {"fastflow": own(p, num_probes=num), f"fastflow {OTHER_MODE}": own(p, num_probes=num, mode=OTHER_MODE)}
    mode = f"{name}, {num} probes" if num > 1 else f"{name}, 1 probe"
    return divergence_case(p, mode, p.probes(num), 1 / num, loops, ours)


def exact_case(name: str) -> Case:
    """By a product for each dimension, so by fewer loops."""
    p = Problem.make(name)
    basis = p.basis()
    loops = {f"{len(basis)} VJPs, one graph": vjps_of_one_graph, "vmap of VJPs": vmap_of_vjps}
    return divergence_case(p, f"{name}, exact", basis, 1, loops, {"fastflow": own(p, method="exact")})


def divergence_case(
    p: Problem, mode: str, probes: Tensor, weight: float, loops: Mapping[str, Products], ours: Mapping[str, Call]
) -> Case:
    def truth() -> tuple[Tensor]:
        return trace(vjps_of_one_graph, p.double(), probes.double(), weight)

    theirs = {name: functools.partial(trace, products, p, probes, weight) for name, products in loops.items()}
    floor = roofline.divergence(roofline.network(p.model, len(p.x)), len(probes))
    return _case(p, "divergence", mode, {**theirs, **ours}, truth, floor)


def on_tape(p: Problem, probe: Tensor) -> tuple[Tensor]:
    x, value = p.recorded()
    (product,) = torch.autograd.grad(value, x, probe, create_graph=True)
    return torch.autograd.grad(-(product * probe).sum(), x)


def guidance_case(name: str) -> Case:
    """The gradient of a one-probe divergence: on autograd's tape, by torch.func, and mode-seeking guidance."""
    p = Problem.make(name)
    (probe,) = p.probes(1)

    def by_func() -> tuple[Tensor]:
        return (grad(lambda x: -(vjp(p.field, x)[1](probe)[0] * probe).sum())(p.x),)

    @torch.no_grad()
    def guided() -> tuple[Tensor]:
        return (ff.mode_guidance(p.velocity, p.x, p.t),)

    ways = {"tape": lambda: on_tape(p, probe), "torch.func": by_func, "fastflow": guided}
    floor = roofline.guidance(roofline.network(p.model, len(p.x)))
    return _case(p, "guidance", name, ways, lambda: on_tape(p.double(), probe.double()), floor)


def _case(
    p: Problem,
    op: str,
    mode: str,
    calls: Mapping[str, Call],
    truth: Call,
    floor: roofline.Floor,
) -> Case:
    return Case(
        op=op,
        mode=mode,
        shape=tuple(p.x.shape),
        dtype=p.x.dtype,
        ways={name: Way(call) for name, call in calls.items()},
        truth=truth,
        budget=1e-4 if p.x.dtype == torch.float32 else 0.05,
        floor=floor,
    )


needs_gpu = pytest.mark.skipif(not CUDA, reason="seconds a product on a CPU")


@pytest.mark.parametrize("num", [1, 4, 16], ids=["1 probe", "4 probes", "16 probes"])
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
