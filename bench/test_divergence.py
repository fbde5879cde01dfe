"""The divergence of a Transformer and its gradient, against the loops that people write.

The field is the demo's DiT for digits (64 dimensions, batch 32) and, on a GPU, DiT-B/2 in bfloat16 (latents of
4 × 32 × 32, batch 8), of which the exact trace would take 4,096 products and is left out. It is the same in every way,
on fastflow's attention: what differs is how its Jacobian products are taken. "K VJPs" evaluates the field for every
probe, "one graph" only once. fastflow draws its probes in every call; the others are given the same.
"""

import copy
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

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
OTHER_MODE = "reverse" if CUDA else "forward"  # than the one that mode="auto" takes without gradients
DIGITS, LATENTS = "digits DiT", "DiT-B/2"


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
        return ff.ops.divergence.Estimator()._draw(self.x, 0, num)

    def basis(self) -> Tensor:
        """A probe for every dimension, ``[M, B, C, H, W]``."""
        size = self.x[0].numel()
        return torch.eye(size).to(self.x).view(size, 1, *self.x.shape[1:]).expand(size, *self.x.shape)


def vjps(p: Problem, probes: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(*reversed(p.recorded()), e)[0] for e in probes])


def vjps_of_one_graph(p: Problem, probes: Tensor) -> Tensor:
    x, value = p.recorded()
    return torch.stack([torch.autograd.grad(value, x, e, retain_graph=True)[0] for e in probes])


def vmap_of_vjps(p: Problem, probes: Tensor) -> Tensor:
    return vmap(vjp(p.field, p.x)[1])(probes)[0]


def jvps(p: Problem, probes: Tensor) -> Tensor:
    return torch.stack([jvp(p.field, (p.x,), (e,))[1] for e in probes])


def estimate(products: Callable[[Problem, Tensor], Tensor], p: Problem, probes: Tensor) -> Tensor:
    """``mean_k ε_k · (J ε_k)``, ``[B]``."""
    dtype = torch.promote_types(p.x.dtype, torch.float32)
    return (products(p, probes).to(dtype) * probes.to(dtype)).flatten(2).sum(2).mean(0)


def own(p: Problem, mode: str, **options: object) -> Callable[[], tuple[Tensor]]:
    @torch.no_grad()
    def call() -> tuple[Tensor]:
        return (ff.divergence(p.field, p.x, mode=mode, **options).divergence,)

    return call


def divergence_case(name: str, num: int | None) -> Case:
    """With so many probes, or the exact trace (where loops that evaluate the field 64 times are left out)."""
    p = Problem.make(name)
    exact = num is None
    probes, scale = (p.basis(), p.x[0].numel()) if exact else (p.probes(num), 1)
    k = len(probes)
    if k == 1:
        loops = {"VJP": vjps, "JVP": jvps}
    else:
        loops = {f"{k} VJPs, one graph": vjps_of_one_graph, "vmap of VJPs": vmap_of_vjps}
        if not exact:
            loops |= {f"{k} VJPs": vjps, f"{k} JVPs": jvps}

    def by(products: Callable[[Problem, Tensor], Tensor]) -> Callable[[], tuple[Tensor]]:
        return lambda: (scale * estimate(products, p, probes),)

    options = {"method": "exact"} if exact else {"num_probes": num}
    ways = {
        **{name: by(products) for name, products in loops.items()},
        "fastflow": own(p, "auto", **options),
        f"fastflow {OTHER_MODE}": own(p, OTHER_MODE, **options),
    }
    mode = "exact" if exact else "1 probe" if num == 1 else f"{num} probes"
    floor = roofline.divergence(roofline.network(p.model, len(p.x)), k)
    return _case(p, "divergence", f"{name}, {mode}", ways, lambda: by_double(p, probes, scale), floor)


def by_double(p: Problem, probes: Tensor, scale: int) -> tuple[Tensor]:
    return (scale * estimate(vjps_of_one_graph, p.double(), probes.double()),)


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
    calls: Mapping[str, Callable[[], tuple[Tensor]]],
    truth: Callable[[], tuple[Tensor]],
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


@pytest.mark.parametrize("num", [1, 4, 16, None], ids=["1 probe", "4 probes", "16 probes", "exact"])
def test_divergence(record, num):
    torch.manual_seed(0)
    record(divergence_case(DIGITS, num))


@pytest.mark.skipif(not CUDA, reason="seconds a product on a CPU")
@pytest.mark.parametrize("num", [1, 4, 16], ids=["1 probe", "4 probes", "16 probes"])
def test_divergence_of_latents(record, num):
    torch.manual_seed(0)
    record(divergence_case(LATENTS, num))


def test_guidance(record):
    torch.manual_seed(0)
    record(guidance_case(DIGITS))
