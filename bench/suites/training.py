"""Training steps of a DiT with losses that differ in their derivatives, on fastflow's ops and on PyTorch's own."""

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp

import fastflow as ff
from bench.suites.models import DEVICE, labels, math_attention
from bench.suites.on_pytorch import pytorch_ops

PATH = ff.paths.CondOT()
Model = Callable[[Tensor, Tensor, Tensor], Tensor]
Objective = Callable[[Model, Tensor, Tensor, Tensor, Tensor], Tensor]  # model, x_t, t, y, v: loss
_offsets = itertools.count()


@dataclass(frozen=True)
class Batch:
    """x0, x1: ``[B, C, H, W]``; t: ``[B]``; y: labels ``[B]``."""

    x0: Tensor
    x1: Tensor
    t: Tensor
    y: Tensor

    @staticmethod
    def draw(size: int, shape: Sequence[int]) -> "Batch":
        x0, x1 = torch.randn(2, size, *shape, device=DEVICE)
        return Batch(x0, x1, torch.rand(size, device=DEVICE), labels(size, DEVICE))

    def in_float64(self, size: int) -> Iterator["Batch"]:
        """Yield parts of at most ``size`` samples in float64."""
        for x0, x1, t, y in zip(*(x.split(size) for x in (self.x0, self.x1, self.t, self.y))):
            yield Batch(x0.double(), x1.double(), t.double(), y)


def cfm(model: Model, xt: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """``|u - v|²``: only the gradient of the model."""
    return F.mse_loss(model(xt, t, y), v)


def mean_flow(model: Model, xt: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """``|u - sg(v - t du/dt)|²``: a JVP in x and t, no gradient through it; MeanFlow (2505.13447) at r = 0."""
    u, du = jvp(lambda x, t: model(x, t, y), (xt, t), (v, torch.ones_like(t)))
    return F.mse_loss(u, (v - _per_sample(t) * du).detach())


def tangent(model: Model, xt: Tensor, t: Tensor, y: Tensor, v: Tensor) -> Tensor:
    """``|u + (1 - t) ∂u/∂t - v|²``: a JVP in t and the gradient through it, as in every loss on a tangent."""
    u, du = jvp(lambda t: model(xt, t, y), (t,), (torch.ones_like(t),))
    return F.mse_loss(u + _per_sample(1 - t) * du, v)


OBJECTIVES: dict[str, Objective] = {"CFM": cfm, "MeanFlow": mean_flow, "tangent": tangent}


def on_torch(objective: Objective, compiled: bool, model: Model, b: Batch, x0: Tensor | None) -> Tensor:
    """The loss without fastflow's ops. x0: given noise, or None to draw it."""
    x0 = torch.randn_like(b.x1) if x0 is None else x0
    loss = _compiled(objective) if compiled else objective
    return loss(model, torch.lerp(x0, b.x1, _per_sample(b.t)), b.t, b.y, b.x1 - x0)


def on_fastflow(objective: Objective, compiled: bool, model: Model, b: Batch, x0: Tensor | None) -> Tensor:
    """The loss on fastflow's flow step. x0: given noise, or None for noise that is drawn and never stored."""
    noise = ff.GaussianNoise(0, next(_offsets)) if x0 is None else x0
    xt = ff.interpolate(noise, b.x1, b.t, path=PATH)
    if objective is cfm:
        pred = (_compiled(model) if compiled else model)(xt, b.t, b.y)
        return ff.flow_matching_loss(pred, noise, b.x1, b.t, path=PATH)
    loss = _compiled(objective) if compiled else objective
    return loss(model, xt, b.t, b.y, ff.target_velocity(noise, b.x1, b.t, path=PATH))


class Training:
    """A model with its optimizer, and an objective computed in several ways.

    Ways: "fastflow", "PyTorch" (the same model on PyTorch's own ops: math attention where a tangent passes, else its
    fastest one), and "WAY compiled". They share the model; steps of one way change the weights of the next, at a
    learning rate too small to matter.
    """

    def __init__(self, model: ff.nn.DiT, mode: str, dtype: torch.dtype) -> None:
        self.model, self.objective, self.dtype = model.to(DEVICE), OBJECTIVES[mode], dtype
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=1e-6, fused=True, capturable=DEVICE.type == "cuda"
        )

    def plain(self) -> "Training":
        """Return the training of the same model by the same optimizer without any tangent."""
        other = copy.copy(self)
        other.objective = cfm
        return other

    def loss(self, way: str, batch: Batch, x0: Tensor | None = None) -> Tensor:
        name, *compiled = way.split()
        with torch.autocast(DEVICE.type, self.dtype, enabled=self.dtype != torch.float32):
            if name == "fastflow":
                return on_fastflow(self.objective, bool(compiled), self.model, batch, x0)
            attention = F.scaled_dot_product_attention if self.objective is cfm else math_attention
            with pytorch_ops(attention, through_tangent=self.objective is tangent):
                return on_torch(self.objective, bool(compiled), self.model, batch, x0)

    def step(self, way: str, batch: Batch) -> tuple[Tensor]:
        """Do one training step on newly drawn noise and return the loss."""
        loss = self.loss(way, batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return (loss.detach(),)

    def gradients(self, way: str, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss on the batch's noise and its flattened gradient in all parameters, without a step."""
        loss = self.loss(way, batch, batch.x0)
        return loss.detach(), _flat(torch.autograd.grad(loss, tuple(self.model.parameters())))

    def truth(self, batch: Batch, together: int = 8) -> tuple[Tensor, Tensor]:
        """Return ``gradients`` in float64 on PyTorch's ops and math attention. together: samples at a time."""
        model = copy.deepcopy(self.model).double()
        total = torch.zeros((), dtype=torch.float64, device=DEVICE)
        with pytorch_ops():
            for part in batch.in_float64(together):
                loss = on_torch(self.objective, False, model, part, part.x0) * (len(part.t) / len(batch.t))
                loss.backward()
                total += loss.detach()
        return total, _flat([p.grad for p in model.parameters()])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in tensors])


def _per_sample(t: Tensor) -> Tensor:
    return t.view(-1, 1, 1, 1)


@functools.cache
def _compiled(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(f, dynamic=False)
