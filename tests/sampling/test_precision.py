"""States in low precision: no step is lost, and nothing but the velocity's input and the result is rounded."""

import math

import pytest
import torch
from torch import Tensor

import fastflow as ff
from fastflow.sampling import classifier_free_guidance, mode_seeking, sample_ode

SOLVERS = ["euler", "midpoint", "heun", "rk4"]
LOW = [torch.bfloat16, torch.float16]
solvers = pytest.mark.parametrize("solver", SOLVERS)
low = pytest.mark.parametrize("dtype", LOW, ids=str)


def shrink(x: Tensor, t: Tensor) -> Tensor:
    """The velocity that halves x between 0 and 1."""
    return -math.log(2.0) * x


@low
@solvers
def test_a_thousand_steps_lose_nothing(solver, dtype):
    x0 = torch.randn(500, 1, generator=torch.Generator().manual_seed(0)).to(dtype)
    x = sample_ode(shrink, x0, num_steps=1000, solver=solver)
    assert x.dtype == dtype
    torch.testing.assert_close(x.float(), 0.5 * x0.float(), rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    assert x.float().std().item() == pytest.approx(0.5 * x0.float().std().item(), rel=1e-2)


@low
@solvers
def test_the_velocity_sees_the_dtype_of_x0_and_times_in_fp32(solver, dtype):
    times = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        assert x.dtype == dtype
        assert t.dtype == torch.float32
        times.append(t[0].item())
        return x

    path = sample_ode(velocity, torch.ones(2, 3, dtype=dtype), num_steps=1000, solver=solver, return_trajectory=True)
    assert path.dtype == dtype
    assert torch.equal(path[0], torch.ones(2, 3, dtype=dtype))
    assert set(times) >= {torch.tensor(k / 1000).item() for k in range(1000)}  # bf16 has 128 numbers between 0.5 and 1


@low
def test_a_trajectory_holds_the_rounded_states(dtype):
    x0 = torch.linspace(-2, 2, 7)[:, None].to(dtype)
    path = sample_ode(shrink, x0, num_steps=400, return_trajectory=True)
    want = x0.float() * 0.5 ** (torch.arange(401) / 400)[:, None, None]
    torch.testing.assert_close(path.float(), want, rtol=2 * torch.finfo(dtype).eps, atol=1e-3)
    assert torch.equal(path[-1], sample_ode(shrink, x0, num_steps=400))


def test_wide_states_stay_wide():
    x0 = torch.ones(2, 3, dtype=torch.float64)
    x = sample_ode(lambda x, t: x.float(), x0, num_steps=50, solver="rk4")
    assert x.dtype == torch.float64
    assert sample_ode(lambda x, t: x.double(), x0.float(), num_steps=2).dtype == torch.float32
    assert sample_ode(shrink, x0, num_steps=50, solver="rk4").sub(0.5).abs().max() < 1e-9


def test_gradients_flow_through_a_low_precision_solve():
    x0 = torch.ones(3, 2, dtype=torch.bfloat16, requires_grad=True)
    sample_ode(shrink, x0, num_steps=400).sum().backward()
    assert x0.grad.dtype == torch.bfloat16
    torch.testing.assert_close(x0.grad.float(), torch.full((3, 2), 0.5), rtol=1e-2, atol=0)


@solvers
def test_autocast_keeps_the_state(solver):
    A = torch.eye(2) * -math.log(2.0)
    x0 = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        x = sample_ode(lambda x, t: x @ A, x0, num_steps=1000, solver=solver)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, 0.5 * x0, rtol=1e-2, atol=1e-3)


@low
@pytest.mark.parametrize("solver", [*SOLVERS, "dopri5"])
def test_the_density_of_low_precision_data(solver, dtype):
    pytest.importorskip("torchdiffeq")
    x = torch.linspace(-1, 1, 6).view(3, 2).to(dtype)
    r = ff.log_likelihood(shrink, x, num_steps=200, solver=solver, method="exact", rtol=1e-4, atol=1e-4)
    assert r.x0.dtype == r.log_prob.dtype == torch.float32
    want = -0.5 * (2 * x.float()).square().sum(1) - math.log(2 * math.pi) + 2 * math.log(2)
    torch.testing.assert_close(r.log_prob, want, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(r.x0, 2 * x.float(), rtol=1e-2, atol=1e-2)


def test_an_estimate_under_autocast_equals_the_one_outside():
    """The projections of hutch++ are matmuls, which autocast would round to bf16."""
    x = torch.randn(4, 24, generator=torch.Generator().manual_seed(1))
    scale = torch.linspace(1, 2, 24)

    def divergence() -> Tensor:
        return ff.divergence(lambda x: scale * x, x, method="hutch++", num_probes=12).divergence

    with torch.autocast("cpu", torch.bfloat16):
        got = divergence()
    torch.testing.assert_close(got, divergence(), rtol=1e-6, atol=1e-5)


def test_guidance_is_combined_in_fp32():
    """u + 1.3 (c − u) = 160; with 1.3 rounded to bf16 it would be 159."""
    c, u = torch.tensor([[100.0]]), torch.tensor([[-100.0]])

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return torch.where(y[:, None] == 0, c, u).to(x.dtype)

    velocity = classifier_free_guidance(model, torch.tensor([0]), scale=1.3, null_class=1)
    got = velocity(torch.zeros(1, 1, dtype=torch.bfloat16), torch.tensor([0.5]))
    assert got.dtype == torch.bfloat16
    assert got.item() == 160.0


def test_mode_seeking_adds_in_fp32():
    x, t = torch.full((1, 1), 0.5, dtype=torch.bfloat16), torch.tensor([0.25])
    got = mode_seeking(lambda x, t: x**3, 0.3, method="exact")(x, t)
    value, g = x**3, ff.mode_guidance(lambda x, t: x**3, x, t, method="exact")
    assert got.dtype == torch.bfloat16
    assert got.item() == (value.float() + 0.3 * 0.75**2 * g.float()).bfloat16().item()
