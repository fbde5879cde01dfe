"""Fixed-step solvers: order, direction, grids, guidance."""

import math

import pytest
import torch
from torch import Tensor

from fastflow.sampling import classifier_free_guidance, sample_ode

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "rk4": 4}


def logistic(x: Tensor, t: Tensor) -> Tensor:
    """dx/dt = 2 t x (1 − x): nonlinear and non-autonomous, with a closed form."""
    return 2.0 * t[:, None] * x * (1.0 - x)


def logistic_at(x0: Tensor, t: float) -> Tensor:
    grown = x0 * math.exp(t * t)
    return grown / (1.0 - x0 + grown)


X0 = torch.tensor([[0.1], [0.45], [0.8]], dtype=torch.float64)


@pytest.mark.parametrize("solver", ORDERS)
def test_error_falls_with_the_solvers_order(solver: str) -> None:
    errors = [
        (sample_ode(logistic, X0, num_steps=n, solver=solver) - logistic_at(X0, 1.0)).abs().max().item()
        for n in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[solver], abs=0.15)


@pytest.mark.parametrize("solver", ORDERS)
def test_one_step_is_exact_for_a_constant_field(solver: str) -> None:
    x = sample_ode(lambda x, t: torch.full_like(x, 3.0), X0, num_steps=1, solver=solver, t0=0.25, t1=0.75)
    assert torch.allclose(x, X0 + 1.5, rtol=1e-14)


def test_backward_integration_returns_to_the_start() -> None:
    there = sample_ode(logistic, X0, num_steps=50, solver="rk4")
    back = sample_ode(logistic, there, num_steps=50, solver="rk4", t0=1.0, t1=0.0)
    assert (back - X0).abs().max() < 1e-8


def test_trajectory_visits_the_grid() -> None:
    grid = torch.tensor([0.0, 0.1, 0.4, 1.0], dtype=torch.float64)
    path = sample_ode(logistic, X0, time_grid=grid, solver="rk4", return_trajectory=True)
    assert path.shape == (4, 3, 1)
    assert torch.equal(path[0], X0)
    for x, t in zip(path, grid.tolist()):
        assert (x - logistic_at(X0, t)).abs().max() < 1e-3


@pytest.mark.parametrize("solver", ORDERS)
def test_times_stay_inside_the_interval(solver: str) -> None:
    times: list[float] = []

    def field(x: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (3,)
        assert t.dtype == torch.float64
        times.append(t[0].item())
        return x

    sample_ode(field, X0, num_steps=7, solver=solver, t0=0.1, t1=0.3)
    assert min(times) == 0.1
    assert max(times) <= 0.3


def test_half_precision_states_get_fp32_times() -> None:
    def field(x: Tensor, t: Tensor) -> Tensor:
        assert t.dtype == torch.float32
        return x

    assert sample_ode(field, X0.bfloat16(), num_steps=3).dtype == torch.bfloat16


def test_gradients_flow_through_the_solve() -> None:
    x0 = X0.clone().requires_grad_()
    sample_ode(logistic, x0, num_steps=100, solver="rk4").sum().backward()
    e = math.e
    assert torch.allclose(x0.grad, e / (1.0 - X0 + X0 * e) ** 2, rtol=1e-7)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "either num_steps or time_grid"),
        ({"num_steps": 2, "time_grid": torch.tensor([0.0, 1.0])}, "either num_steps or time_grid"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"num_steps": 2, "solver": "dopri5"}, "'euler', 'midpoint', 'heun', 'rk4', got 'dopri5'"),
        ({"time_grid": torch.tensor([0.0, 0.5, 0.5])}, "strictly monotone"),
        ({"time_grid": torch.tensor([0.0])}, "at least two times"),
    ],
)
def test_bad_grids_are_named(kwargs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_ode(logistic, X0, **kwargs)


def test_integer_states_are_refused() -> None:
    with pytest.raises(TypeError, match="x0 must be a floating-point tensor"):
        sample_ode(logistic, torch.zeros(3, 1, dtype=torch.int64), num_steps=1)


def labelled(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """Return a velocity that shows the label and the time."""
    return (10.0 * y + t)[:, None].expand_as(x)


Y = torch.tensor([0, 1, 2])
NULL = 7


def test_guidance_extrapolates_from_the_null_class() -> None:
    t = torch.full((3,), 0.5)
    velocity = classifier_free_guidance(labelled, Y, scale=2.5, null_class=NULL)
    assert torch.allclose(velocity(torch.zeros(3, 4), t)[:, 0], 0.5 + 70.0 + 2.5 * (10.0 * Y - 70.0))


def test_guidance_of_scale_one_asks_for_no_null_class() -> None:
    t = torch.full((3,), 0.5)
    velocity = classifier_free_guidance(labelled, Y, scale=1.0, null_class=None)
    assert torch.equal(velocity(torch.zeros(3, 4), t)[:, 0], 10.0 * Y + 0.5)


def test_guidance_acts_inside_its_interval_only() -> None:
    velocity = classifier_free_guidance(labelled, Y, scale=3.0, null_class=NULL, interval=(0.2, 0.6))
    t = torch.tensor([0.1, 0.6, 0.7])
    out = velocity(torch.zeros(3, 4), t)[:, 0]
    assert torch.allclose(out, t + torch.tensor([0.0, 70.0 + 3.0 * (10.0 - 70.0), 20.0]))


def test_bad_guidance_is_named() -> None:
    with pytest.raises(ValueError, match="low < high"):
        classifier_free_guidance(labelled, Y, scale=2.0, null_class=NULL, interval=(0.6, 0.2))
    with pytest.raises(ValueError, match="null class"):
        classifier_free_guidance(labelled, Y, scale=2.0, null_class=None)
