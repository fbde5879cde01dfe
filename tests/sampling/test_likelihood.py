"""Log-densities against closed forms, and those of trained models."""

import math
import sys

import pytest
import torch
from torch import Tensor

import fastflow as ff
from fastflow import paths
from tests.flows import PATHS, GaussianMixtureFlow
from tests.trained import trained_digits, trained_points


def likelihood(flow: GaussianMixtureFlow, x: Tensor, **kwargs) -> ff.Likelihood:
    low, high = flow.path.domain
    options = {"method": "exact", "log_p0": flow.source_log_prob, "t0": low, "t1": high, **kwargs}
    with torch.no_grad():
        return ff.log_likelihood(flow.velocity, x, **options)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_mixture_flow_within_a_thousandth_of_a_nat_a_dimension(path):
    flow = GaussianMixtureFlow.example(path)
    x = flow.sample(200)
    truth = flow.log_prob(x, torch.full((200,), path.domain[1], dtype=x.dtype))
    steps = {"heun": 100, "rk4": 100 if isinstance(path, paths.LinearVP) else 50}  # d_beta is infinite at t = 1
    heun, rk4 = (likelihood(flow, x, num_steps=n, solver=s).log_prob - truth for s, n in steps.items())
    assert heun.mean().abs() <= 2 * 1e-4
    assert heun.square().mean().sqrt() <= 2 * 1e-3
    assert rk4.abs().max() <= 1e-4


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_error_falls_with_the_solvers_order(solver, order):
    flow = GaussianMixtureFlow.example(paths.CondOT())
    x = flow.sample(20)
    truth = flow.log_prob(x, torch.ones(20, dtype=x.dtype))
    errors = [(likelihood(flow, x, num_steps=n, solver=solver).log_prob - truth).norm().log2() for n in (40, 80)]
    assert (errors[0] - errors[1]).item() == pytest.approx(order, abs=0.4)


def test_dopri5_meets_its_tolerance():
    pytest.importorskip("torchdiffeq")
    flow = GaussianMixtureFlow.example(paths.CondOT())
    x = flow.sample(50)
    truth = flow.log_prob(x, torch.ones(50, dtype=x.dtype))
    r = likelihood(flow, x, solver="dopri5", rtol=1e-7, atol=1e-7)
    assert (r.log_prob - truth).abs().max() < 1e-5
    assert r.stderr is None


def test_dopri5_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fastflow\[ode\]'"):
        ff.log_likelihood(lambda x, t: x, torch.ones(2, 3), solver="dopri5")


@pytest.mark.parametrize("method", [{"num_probes": 16}, {"method": "hutch++", "num_probes": 16}], ids=str)
def test_estimates_agree_within_their_standard_error(method):
    flow = GaussianMixtureFlow.example(paths.CondOT(), dim=8)
    x = flow.sample(200)
    exact = likelihood(flow, x, num_steps=40).log_prob
    r = likelihood(flow, x, num_steps=40, **{"method": "hutchinson", **method})
    z = (r.log_prob - exact) / r.stderr
    assert z.abs().mean() < 1.2
    assert z.mean().abs() < 4 * z.std() / math.sqrt(200)


def test_probes_are_the_same_for_the_whole_solve():
    """Every evaluation multiplies the Jacobian by the same vectors, so a probe's error does not average out."""
    A = torch.tensor([[0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)  # εᵀ A ε = ±1, trace 0
    x = torch.zeros(64, 2, dtype=torch.float64)
    r = ff.log_likelihood(lambda x, t: x @ A.T, x, num_steps=50)
    assert torch.allclose((r.log_prob + math.log(2 * math.pi)).abs(), torch.ones(64, dtype=torch.float64))


def test_density_of_the_mixture_flow_integrates_to_one():
    flow = GaussianMixtureFlow.example(paths.CondOT())
    axis = torch.linspace(-5, 5, 60, dtype=torch.float64)
    r = likelihood(flow, torch.cartesian_prod(axis, axis), num_steps=40)
    assert r.log_prob.exp().sum().item() * (axis[1] - axis[0]).item() ** 2 == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_density_of_a_trained_model_integrates_to_one():
    model = trained_points("eight_gaussians")
    axis = torch.linspace(-11, 11, 90)
    with torch.no_grad():
        r = ff.log_likelihood(model, torch.cartesian_prod(axis, axis), method="exact", num_steps=50)
    assert r.log_prob.double().exp().sum().item() * (axis[1] - axis[0]).item() ** 2 == pytest.approx(1, abs=0.01)


@pytest.mark.slow
def test_exact_and_estimated_divergence_agree_on_trained_digits():
    model = trained_digits()
    x, y = torch.randn(128, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(128) % 10
    t = torch.linspace(0.1, 0.9, 128)

    def field(x: Tensor) -> Tensor:
        return model(x, t, y)

    with torch.no_grad():
        exact = ff.divergence(field, x, method="exact")
        for method in ("hutchinson", "hutch++"):
            r = ff.divergence(field, x, method=method, num_probes=32)
            z = (r.divergence - exact.divergence) / r.stderr
            assert z.abs().mean() < 1.0
            assert z.mean().abs() < 4 / math.sqrt(128)


def test_point_and_density_come_back_differentiable():
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    r = ff.log_likelihood(lambda x, t: scale * x, x, num_steps=20, solver="rk4")
    grads = torch.autograd.grad(r.log_prob.sum(), (x, scale))
    shrink = math.exp(-0.6)
    assert torch.allclose(r.x0, x * math.exp(-0.3))
    assert torch.allclose(r.log_prob, -0.5 * shrink * x.square().sum(1) - math.log(2 * math.pi) - 0.6)
    assert torch.allclose(grads[0], -shrink * x)
    assert torch.allclose(grads[1], (shrink * x.square()).sum() - 6)


def test_half_precision_data_keep_an_fp32_density():
    x = torch.ones(2, 3, 4, dtype=torch.bfloat16)
    r = ff.log_likelihood(lambda x, t: 0.1 * x, x, num_steps=100, method="exact")
    assert r.log_prob.dtype == r.x0.dtype == torch.float32
    assert r.x0.shape == (2, 3, 4)
    expected = -6 * math.log(2 * math.pi) - 6 * math.exp(-0.2) - 1.2
    assert torch.allclose(r.log_prob, torch.full((2,), expected), rtol=1e-3)


def test_bits_per_dimension_count_the_scale():
    r = ff.Likelihood(torch.tensor([0.0, -64 * math.log(2.0)]), torch.zeros(2, 1, 8, 8), None)
    assert torch.allclose(r.bits_per_dim(), torch.tensor([0.0, 1.0]))
    assert torch.allclose(r.bits_per_dim(scale=128.0), torch.tensor([7.0, 8.0]))
    with pytest.raises(ValueError, match=r"scale must be positive, got 0.0"):
        r.bits_per_dim(scale=0.0)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"solver": "rk5"}, "'rk4', 'dopri5', got 'rk5'"),
        ({"num_steps": 0}, "num_steps must be at least 1"),
        ({"method": "trace"}, "method must be one of"),
        ({"num_probes": 0}, "num_probes must be at least 1"),
    ],
)
def test_bad_values_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ff.log_likelihood(lambda x, t: x, torch.ones(2, 3), **kwargs)


def test_bad_data_are_named():
    with pytest.raises(TypeError, match=r"x1 must have a floating point dtype"):
        ff.log_likelihood(lambda x, t: x, torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"x1 must be \[B, ...\], got a scalar"):
        ff.log_likelihood(lambda x, t: x, torch.tensor(1.0))
