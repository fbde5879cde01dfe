"""Shares of a global draw in the flow step: each process computes its rows of what one process would."""

import pytest
import torch

import fastflow as ff
from tests.compare import tensors
from tests.modes import MODES, Problem

PATH = ff.paths.SchrodingerBridge(0.7)
BACKENDS = ["reference", "triton"]
SHAPES = [(6, 3), (6, 3, 5), (6, 4), (6, 1), (6, 700)]
B = 6


def problem(shape, dtype=torch.float32, device="cpu"):
    """pred, x1 [B, ...], t and weight [B]."""
    generator = torch.Generator().manual_seed(0)
    pred, x1 = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    t, weight = (0.1 + 0.8 * torch.rand(shape[0], generator=generator, dtype=torch.float64) for _ in range(2))
    return tuple(x.to(device, dtype).requires_grad_() for x in (pred, x1, t, weight))


def results(x, x0, z, backend):
    """x_t, the losses, and the gradients of both."""
    pred, x1, t, weight = x
    xt = ff.interpolate(x0, x1, t, path=PATH, noise=z, backend=backend)
    loss = ff.flow_matching_loss(pred, x0, x1, t, path=PATH, noise=z, weight=weight, reduction="none", backend=backend)
    grads = torch.autograd.grad(loss.sum() + xt.sum(), (pred, x1, t, weight), materialize_grads=True)
    return xt.detach(), loss.detach(), *grads


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_rows_of_a_share_are_those_of_the_whole(shape, backend, device):
    """x0 and z are shared out alike, and from first samples that align differently to the generator's groups."""
    for z_first in (0, 9):
        x = problem(shape, device=device)
        whole = results(x, ff.GaussianNoise(1, 2), ff.GaussianNoise(1, 3, z_first), backend)
        for first, stop in ((0, 2), (1, 4), (5, 6)):
            part = [y.detach()[first:stop].requires_grad_() for y in x]
            got = results(part, ff.GaussianNoise(1, 2, first), ff.GaussianNoise(1, 3, z_first + first), backend)
            for a, b in zip(got, whole, strict=True):
                torch.testing.assert_close(a, b[first:stop], rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("firsts", [(3, 3), (3, 1), (0, 2), (1 << 40, 5)], ids=str)
def test_drawn_is_materialised(firsts, backend, device):
    x = problem((2, 3, 5), device=device)
    x0, z = (ff.GaussianNoise(1, i, first) for i, first in enumerate(firsts))
    drawn = results(x, x0, z, backend)
    given = results(x, *(n.materialize((2, 3, 5), device=device) for n in (x0, z)), "reference")
    for a, b in zip(drawn, given, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    velocity = ff.target_velocity(x0, x[1], x[2], path=PATH, noise=z)
    c = [v.view(-1, 1, 1) for v in PATH.coefficients(x[2])[3:]]
    expected = c[0] * x[1] + c[1] * x0.materialize((2, 3, 5)).to(device) + c[2] * z.materialize((2, 3, 5)).to(device)
    torch.testing.assert_close(velocity, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_kernels_match_float64_in_every_mode(name, device):
    x0, z = ff.GaussianNoise(1, 0, 3), ff.GaussianNoise(1, 1, 2)
    single = [x.detach() for x in problem((3, 2, 3), device=device)]

    def computed(backend, dtype):
        def loss(pred, x1, t, weight):
            options = {"path": PATH, "noise": z, "weight": weight, "reduction": "none", "backend": backend}
            return ff.flow_matching_loss(pred, x0, x1, t, **options)

        x = [y.to(dtype) for y in single]
        t = [torch.cos(3 * y) for y in x]
        ts, xs = [torch.stack([y, -2 * y]) for y in t], [torch.stack([y, y + 0.01]) for y in x]
        w = torch.linspace(0.5, 1.5, 3, dtype=dtype, device=device)
        return tensors(MODES[name](loss, Problem(x, t, ts, xs, w, torch.stack([w, -w]), square=0.0)))

    for a, b in zip(computed("triton", torch.float32), computed("reference", torch.float64), strict=True):
        assert (a.double() - b).abs().max() <= 3e-6 * b.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_for_any_first_sample(backend, device):
    torch._dynamo.reset()
    pred, x1, t, weight = problem((2, 3), device=device)
    count = 0

    def counting(graph, _):
        nonlocal count
        count += 1
        return graph.forward

    def step(first, offset):
        x0, z = ff.GaussianNoise(1, offset, first), ff.GaussianNoise(2, offset, first)
        xt = ff.interpolate(x0, x1, t, path=PATH, noise=z, backend=backend)
        times = ff.paths.sample_times(PATH, 2, seed=1, offset=offset, first_sample=first)
        options = {"path": PATH, "noise": z, "weight": weight, "backend": backend}
        return ff.flow_matching_loss(pred * xt, x0, x1, t, **options) + times.sum()

    compiled = torch.compile(step, fullgraph=True, backend=counting)
    for i, first in enumerate((2, 4, 7, 3, 10)):
        torch.testing.assert_close(compiled(first, i + 5), step(first, i + 5))
    assert count <= 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_under_vmap_every_batch_has_the_samples_of_the_share(backend, device):
    x1 = torch.randn(2, 3, 5, device=device)
    noise = ff.GaussianNoise(1, 2, 3)
    mapped = torch.vmap(lambda x: ff.interpolate(noise, x, 0.5, path=ff.paths.CondOT(), backend=backend))(x1)
    torch.testing.assert_close(mapped, 0.5 * x1 + 0.5 * noise.materialize((3, 5), device=device))
