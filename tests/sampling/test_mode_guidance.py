"""Mode-seeking guidance: its closed forms, and its effect on samples."""

import pytest
import torch
from torch import Tensor

import fastflow as ff
from fastflow import paths
from fastflow.kernels.divergence import reference
from fastflow.sampling.guidance import mode_seeking
from tests.flows import GaussianMixtureFlow
from tests.trained import trained_digits, trained_points

FLOW = GaussianMixtureFlow.example(paths.CondOT(), dim=3)
T = torch.full((6,), 0.6, dtype=torch.float64)


def points(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def double_backward(velocity, x: Tensor, t: Tensor, probes: Tensor) -> Tensor:
    """Return ``−∇ mean_k ε_kᵀ J ε_k``, by one vector-Jacobian product after another on autograd's tape."""
    x = x.detach().requires_grad_()
    value = velocity(x, t)
    total = 0.0
    for probe in probes:
        (product,) = torch.autograd.grad(value, x, probe, create_graph=True)
        total = total + (product * probe).sum()
    return torch.autograd.grad(-total / len(probes), x)[0]


@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("num_probes", [1, 5])
def test_equals_the_double_backward(num_probes, recorded, mode):
    x = points(6, 3)
    with torch.set_grad_enabled(recorded):
        g = ff.mode_guidance(FLOW.velocity, x, T, num_probes=num_probes, mode=mode, seed=2, offset=3)
    probes = reference.probes((num_probes, 6, 3), 2, 3, 0, "rademacher").double()
    assert (g - double_backward(FLOW.velocity, x, T, probes)).abs().max() < 1e-10


@pytest.mark.parametrize("num_probes", [1, 3])
def test_equals_the_double_backward_on_a_transformer(num_probes):
    torch.manual_seed(0)
    model = ff.nn.DiT(4, 2, 1, hidden_size=16, depth=2, num_heads=2).double()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    x = points(6, 1, 4, 4)
    probes = reference.probes((num_probes, *x.shape), 0, 0, 0, "rademacher").double()
    g = ff.mode_guidance(model, x, T, num_probes=num_probes)
    expected = double_backward(model, x, T, probes)
    assert (g - expected).abs().max() < 1e-10
    assert expected.abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("chunk_size", [None, 1, 2])
def test_the_callers_own_probes(chunk_size, recorded, mode):
    x, probes = points(6, 3), points(5, 6, 3)
    with torch.set_grad_enabled(recorded):
        g = ff.mode_guidance(FLOW.velocity, x, T, probes=probes, mode=mode, chunk_size=chunk_size)
        guided = mode_seeking(FLOW.velocity, 0.5, probes=probes, mode=mode, chunk_size=chunk_size)(x, T)
    expected = double_backward(FLOW.velocity, x, T, probes)
    assert (g - expected).abs().max() < 1e-10
    assert (guided - FLOW.velocity(x, T) - 0.5 * (1 - T).square()[:, None] * expected).abs().max() < 1e-10


@pytest.mark.parametrize("guide", [ff.mode_guidance, lambda v, x, t, **k: mode_seeking(v, 0.5, **k)(x, t)])
def test_probes_are_checked_as_those_of_a_divergence(guide):
    """Integers, a missing axis, another shape, none, and another method."""
    x = points(6, 3)
    bad = [{"probes": torch.ones(2, 6, 3, dtype=torch.int64)}, {"probes": points(2, 6, 3), "method": "exact"}]
    bad += [{"probes": points(*shape)} for shape in ((6, 3), (2, 6, 4), (2, 5, 3), (0, 6, 3))]
    for options in bad:
        with pytest.raises((TypeError, ValueError)) as of_divergence:
            ff.divergence(lambda x: FLOW.velocity(x, T), x, **options)
        with pytest.raises(of_divergence.type) as of_guidance:
            guide(FLOW.velocity, x, T, **options)
        assert str(of_guidance.value) == str(of_divergence.value)
        assert "probes" in str(of_guidance.value)


def test_exact_guidance_is_the_gradient_of_the_closed_form():
    x = points(6, 3).requires_grad_()
    (expected,) = torch.autograd.grad(-FLOW.divergence(x, T).sum(), x)
    assert torch.allclose(ff.mode_guidance(FLOW.velocity, x.detach(), T, method="exact"), expected, rtol=1e-10)


def test_a_linear_velocity_has_no_modes_to_seek():
    x = points(6, 3)
    for given in (x, x.clone().requires_grad_()):
        assert torch.equal(ff.mode_guidance(lambda x, t: 3 * x, given, T), torch.zeros_like(x))


def test_composes_with_transforms_and_compile():
    x = points(6, 3)
    g = ff.mode_guidance(FLOW.velocity, x, T)

    def guidance(x: Tensor) -> Tensor:
        return ff.mode_guidance(lambda x, t: torch.sin(x).flip(1) * x, x, T, num_probes=2)

    assert torch.allclose(torch.func.vmap(lambda x: ff.mode_guidance(FLOW.velocity, x, T))(x[None])[0], g)
    assert torch.autograd.gradcheck(guidance, x.clone().requires_grad_())
    torch.compiler.reset()
    compiled = torch.compile(guidance, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), guidance(x))


def test_inference_mode_is_refused():
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"use torch.no_grad\(\)"):
        ff.mode_guidance(FLOW.velocity, points(6, 3), T)


def test_guided_velocity_adds_the_weighted_guidance():
    x, t = points(6, 3), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    v, g = FLOW.velocity(x, t), ff.mode_guidance(FLOW.velocity, x, t, num_probes=2, seed=1)
    guided = mode_seeking(FLOW.velocity, 0.7, num_probes=2, seed=1)
    assert torch.allclose(guided(x, t), v + 0.7 * (1 - t).square()[:, None] * g)
    guided = mode_seeking(FLOW.velocity, lambda t: 3 * t, num_probes=2, seed=1)
    assert torch.allclose(guided(x, t), v + 3 * t[:, None] * g)
    assert mode_seeking(torch.mul, 0.0) is torch.mul


def test_sample_ode_takes_the_weight():
    x0 = points(6, 3)
    got = ff.sample_ode(FLOW.velocity, x0, num_steps=5, mode_guidance=0.5)
    assert torch.equal(got, ff.sample_ode(mode_seeking(FLOW.velocity, 0.5), x0, num_steps=5))
    assert not torch.allclose(got, ff.sample_ode(FLOW.velocity, x0, num_steps=5))


def test_guidance_raises_the_exact_likelihood_of_the_mixture():
    flow = GaussianMixtureFlow.example(paths.CondOT())
    x0 = torch.randn(500, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    one = torch.ones(500, dtype=torch.float64)
    with torch.no_grad():
        means = [
            flow.log_prob(ff.sample_ode(flow.velocity, x0, num_steps=30, mode_guidance=w), one).mean()
            for w in (0.0, 0.3, 1.0)
        ]
    assert means[0] + 0.02 < means[1]
    assert means[1] + 0.02 < means[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["moons", "eight_gaussians"])
def test_guidance_raises_the_exact_likelihood_of_trained_points(name):
    model = trained_points(name)
    x0 = ff.GaussianNoise(3).materialize((500, 2))
    with torch.no_grad():
        unguided, guided = (
            ff.log_likelihood(
                model, ff.sample_ode(model, x0, num_steps=50, mode_guidance=w), method="exact", num_steps=50
            ).log_prob.mean()
            for w in (0.0, 0.5)
        )
    assert guided > unguided + 0.02


@pytest.mark.slow
def test_guidance_raises_the_estimated_likelihood_of_trained_digits():
    model, y = trained_digits(), torch.arange(40) % 10
    x0 = ff.GaussianNoise(3).materialize((40, 1, 8, 8))

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t, y)

    with torch.no_grad():
        unguided, guided = (
            ff.log_likelihood(
                velocity, ff.sample_ode(velocity, x0, num_steps=15, mode_guidance=w), num_probes=4, num_steps=15
            )
            for w in (0.0, 1.0)
        )
    rise = guided.log_prob - unguided.log_prob
    error = (guided.stderr.square() + unguided.stderr.square()).mean().sqrt() / len(rise) ** 0.5
    assert rise.mean() > 4 * error
