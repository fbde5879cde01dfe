"""``autograd.grad(is_grads_batched=True)`` of flow step and divergence, twice, against one cotangent at a time."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import grad

import fastflow as ff

BACKENDS = ["reference", "triton"]
R = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=R)


def twice(f: Callable[..., Tensor], x: Sequence[Tensor], g: Tensor, h: Tensor, batched: bool) -> list[Tensor]:
    """Gradients for K cotangents g, and the gradients of a function of these in x and g, for K more."""
    *x, g = (y.detach().clone().requires_grad_() for y in (*x, g))
    out = f(*x)
    if batched:
        first = grad(out, x, g, create_graph=True, is_grads_batched=True)
    else:
        each = [grad(out, x, one, create_graph=True) for one in g]
        first = tuple(torch.stack(rows) for rows in zip(*each, strict=True))
    value = torch.stack([y.square().flatten(1).sum(1) for y in first]).sum(0)  # [K]
    if batched:
        return [*first, *grad(value, [*x, g], h, is_grads_batched=True)]
    second = [grad(value, [*x, g], one, retain_graph=True) for one in h]
    return [*first, *(torch.stack(rows) for rows in zip(*second, strict=True))]


@pytest.mark.parametrize("backend", BACKENDS)
def test_flow_step(backend: str) -> None:
    path = ff.paths.Cosine()
    pred, x0, x1, weight = normal(3, 4), normal(3, 4), normal(3, 4), normal(3).abs()
    x, g, h = (pred, x0, x1, torch.tensor([0.2, 0.5, 0.7]).double(), weight), normal(2, 3), normal(2, 2)

    def loss(pred: Tensor, x0: Tensor, x1: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        xt = ff.interpolate(x0, x1, t, path=path, backend=backend)
        return ff.flow_matching_loss(pred * xt, x0, x1, t, path=path, weight=weight, reduction="none", backend=backend)

    def plain(pred: Tensor, x0: Tensor, x1: Tensor, t: Tensor, weight: Tensor) -> Tensor:
        s, c = torch.sin(torch.pi / 2 * t)[:, None], torch.cos(torch.pi / 2 * t)[:, None]
        residual = pred * (s * x1 + c * x0) - torch.pi / 2 * (c * x1 - s * x0)
        return weight * residual.square().mean(1)

    dtype = torch.float64 if backend == "reference" else torch.float32
    narrow = [y.to(dtype) for y in (*x, g, h)]
    actual = twice(loss, narrow[:-2], *narrow[-2:], batched=True)
    for a, b in zip(actual, twice(plain, x, g, h, batched=False), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_divergence(backend: str, mode: str) -> None:
    x, A, g, h = (normal(*shape).float() for shape in ((2, 3), (3, 3), (2, 2), (2, 2)))

    def divergence(x: Tensor, A: Tensor) -> Tensor:
        options = {"num_probes": 2, "seed": 1, "mode": mode, "backend": backend}
        return ff.divergence(lambda x: (x @ A.mT).sin() * x, x, **options).divergence

    expected = twice(divergence, (x, A), g, h, batched=False)
    for a, b in zip(twice(divergence, (x, A), g, h, batched=True), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
