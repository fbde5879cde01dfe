"""Values of velocities, times, tolerances, and solves that cannot go on."""

import math

import pytest
import torch
from torch import Tensor

import fastflow as ff
from fastflow.sampling import IntegrationError, adaptive, classifier_free_guidance, mode_seeking, sample_ode

X, T, Y = torch.ones(3, 1), torch.full((3,), 0.5), torch.tensor([0, 1, 2])
SOLVERS = ["euler", "midpoint", "heun", "rk4"]
BAD = {
    "no last axis": (lambda x: x[:, 0], ValueError, r"must return the shape of x, \((3|6), 1\), got shape \((3|6),\)"),
    "another batch": (lambda x: x[:1], ValueError, r"must return the shape of x, \((3|6), 1\), got shape \(1, 1\)"),
    "more axes": (lambda x: x[None], ValueError, "must return the shape of x"),
    "another device": (lambda x: x.to("meta"), ValueError, "must return a tensor on cpu, .* got meta"),
    "integers": (lambda x: x.int(), TypeError, "must return a floating point dtype, got torch.int32"),
    "complex": (lambda x: x + 1j, TypeError, "must return a floating point dtype, got torch.complex64"),
    "tuple": (lambda x: (x,), TypeError, "must return a tensor, got tuple"),
    "number": (lambda x: 0.0, TypeError, "must return a tensor, got float"),
    "nothing": (lambda x: None, TypeError, "must return a tensor, got NoneType"),
}


def guided(function, scale):
    return classifier_free_guidance(lambda x, t, y: function(x), Y, scale=scale, null_class=3)


CALLS = {
    **{s: lambda f, s=s: sample_ode(lambda x, t: f(x), X, num_steps=2, solver=s) for s in SOLVERS},
    "trajectory": lambda f: sample_ode(lambda x, t: f(x), X, num_steps=2, return_trajectory=True),
    "guidance": lambda f: guided(f, 2.0)(X, T),
    "guidance of scale 1": lambda f: guided(f, 1.0)(X, T),
    "guided sampling": lambda f: sample_ode(guided(f, 2.0), X, num_steps=2),
    "mode guidance": lambda f: ff.mode_guidance(lambda x, t: f(x), X, T),
    "mode seeking": lambda f: sample_ode(lambda x, t: f(x), X, num_steps=2, mode_guidance=0.5),
    "likelihood": lambda f: ff.log_likelihood(lambda x, t: f(x), X, num_steps=2),
    "forward likelihood": lambda f: ff.log_likelihood(lambda x, t: f(x), X, num_steps=2, mode="forward"),
    "dopri5": lambda f: ff.log_likelihood(lambda x, t: f(x), X, solver="dopri5"),
    "divergence": lambda f: ff.divergence(f, X),
    "forward divergence": lambda f: ff.divergence(f, X, mode="forward"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", BAD)
def test_bad_values_of_a_velocity_are_named(name, call):
    if call == "dopri5":
        pytest.importorskip("torchdiffeq")
    function, error, message = BAD[name]
    with pytest.raises(error, match=rf"^(velocity|model|field) {message}"):
        CALLS[call](function)


@pytest.mark.parametrize("call", [*SOLVERS, "trajectory", "guidance", "guidance of scale 1", "guided sampling"])
def test_a_masked_tensor_is_refused(call):
    """It passed through the solvers, mask and all."""
    with pytest.raises(TypeError, match=r"^(velocity|model) must return a dense tensor, got a MaskedTensor: pass"):
        CALLS[call](lambda x: torch.masked.as_masked_tensor(x, torch.ones_like(x, dtype=torch.bool)))


@pytest.mark.parametrize(("x", "wanted"), [([1.0], "be a tensor, got list"), (X.int(), "have a floating point")])
def test_mode_guidance_checks_its_point(x, wanted):
    with pytest.raises(TypeError, match=f"^x must {wanted}"):
        ff.mode_guidance(lambda x, t: x, x, T)


def test_empty_batches_are_checked_too():
    with pytest.raises(ValueError, match=r"field must return the shape of x, \(0, 3\), got shape \(0,\)"):
        ff.divergence(lambda x: x[:, 0], torch.ones(0, 3))
    with pytest.raises(ValueError, match=r"velocity must return the shape of x"):
        sample_ode(lambda x, t: t, torch.ones(0, 3), num_steps=1)


def test_labels_are_one_a_sample():
    velocity = classifier_free_guidance(lambda x, t, y: x, Y[:2], scale=2.0, null_class=3)
    with pytest.raises(ValueError, match=r"y must hold a label for each of the 3 samples, got shape \(2,\)"):
        velocity(X, T)
    with pytest.raises(TypeError, match="y must be a tensor, got list"):
        classifier_free_guidance(lambda x, t, y: x, [0, 1, 2], scale=2.0, null_class=3)
    with pytest.raises(ValueError, match="scale must be finite, got nan"):
        guided(lambda x: x, math.nan)
    with pytest.raises(TypeError, match="scale must be a number, got str"):
        guided(lambda x: x, "2")


def test_weights_of_mode_seeking():
    for weight, error, message in (
        (lambda t: t[:1], ValueError, r"weight must return the shape of t, \(3,\), got shape \(1,\)"),
        (lambda t: t[:, None], ValueError, "weight must return the shape of t"),
        (lambda t: 0.5, TypeError, "weight must return a tensor, got float"),
        (math.inf, ValueError, "weight must be finite, got inf"),
        ("1", TypeError, "weight must be a number, got str"),
    ):
        with pytest.raises(error, match=message):
            mode_seeking(lambda x, t: x, weight)(X, T)
        with pytest.raises(error, match=message):
            sample_ode(lambda x, t: x, X, num_steps=1, mode_guidance=weight)


def test_the_source_density_is_one_number_a_sample():
    normal = torch.distributions.Normal(0.0, 1.0)
    for log_p0, error, message in (
        (normal.log_prob, ValueError, r"log_p0 must return \[B\], \(3,\), got shape \(3, 1\)"),
        (lambda x: normal.log_prob(x).sum(), ValueError, r"log_p0 must return \[B\], \(3,\), got shape \(\)"),
        (lambda x: 0.0, TypeError, "log_p0 must return a tensor, got float"),
    ):
        with pytest.raises(error, match=message):
            ff.log_likelihood(lambda x, t: x, X, num_steps=1, log_p0=log_p0)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"num_steps": 2.0}, TypeError, "num_steps must be an int, got float"),
        ({"num_steps": True}, TypeError, "num_steps must be an int, got bool"),
        ({"num_steps": "2"}, TypeError, "num_steps must be an int, got str"),
        ({"num_steps": -1}, ValueError, "num_steps must be at least 1, got -1"),
        ({"num_steps": 2, "t0": math.nan}, ValueError, "t0 must be finite, got nan"),
        ({"num_steps": 2, "t1": math.inf}, ValueError, "t1 must be finite, got inf"),
        ({"num_steps": 2, "t1": "1"}, TypeError, "t1 must be a number, got str"),
        ({"num_steps": 2, "t0": torch.tensor(0.0, requires_grad=True)}, TypeError, "t0 must be .* pass t0.detach"),
        ({"num_steps": 2, "t0": torch.zeros(3)}, TypeError, "t0 must be a number, got a tensor of shape"),
    ],
)
def test_bad_times_are_named(kwargs, error, message):
    for call in (sample_ode, ff.log_likelihood):
        with pytest.raises(error, match=message):
            call(lambda x, t: x, X, **kwargs)


def test_bad_grids_are_named():
    for grid, error, message in (
        ([0.0, 1.0], TypeError, "time_grid must be a tensor of real numbers, got list"),
        (torch.tensor([0.0, math.inf]), ValueError, "strictly monotone and finite"),
        (torch.tensor([0.0, math.nan, 1.0]), ValueError, "strictly monotone and finite"),
        (torch.tensor([0.5, 0.5]), ValueError, "strictly monotone"),
        (torch.tensor([0.0, 1.0, 0.5]), ValueError, "strictly monotone"),
        (torch.tensor([[0.0, 1.0]]), ValueError, r"got \(1, 2\)"),
        (torch.tensor([0.0, 1.0], requires_grad=True), ValueError, "time_grid must not be differentiated"),
    ):
        with pytest.raises(error, match=message):
            sample_ode(lambda x, t: x, X, time_grid=grid)
    with pytest.raises(ValueError, match="time_grid must not be differentiated"):
        torch.func.grad(lambda g: sample_ode(lambda x, t: x, X, time_grid=g).sum())(torch.tensor([0.0, 1.0]))


def test_an_interval_without_length_changes_nothing():
    for solver in (*SOLVERS, "dopri5"):
        if solver == "dopri5":
            pytest.importorskip("torchdiffeq")
        r = ff.log_likelihood(lambda x, t: x.sin(), X, num_steps=2, solver=solver, t0=0.5, t1=0.5)
        assert torch.equal(r.x0, X)
    assert torch.equal(sample_ode(lambda x, t: x, X, num_steps=2, t0=0.5, t1=0.5), X)


def adaptively(velocity, x: Tensor = X, **kwargs) -> ff.Likelihood:
    pytest.importorskip("torchdiffeq")
    return ff.log_likelihood(velocity, x, solver="dopri5", method="exact", **kwargs)


NOT_FINITE = "the velocity or its divergence is not finite there"


@pytest.mark.parametrize(
    ("velocity", "message"),
    [
        (lambda x, t: x * math.nan, f"t = 1: {NOT_FINITE}"),
        (lambda x, t: x * math.inf, f"t = 1: {NOT_FINITE}"),
        (lambda x, t: x * torch.where(t < 0.5, math.nan, 1.0)[:, None], rf"t = 0\.[34]\d*: {NOT_FINITE}"),
        (lambda x, t: (x - 1).abs().sqrt(), f"t = 1: {NOT_FINITE}"),
        (lambda x, t: -1e3 * x.square(), r"t = 0\.99"),  # infinite at t = 0.999
    ],
    ids=["nan", "inf", "nan later", "nan divergence", "explosion"],
)
def test_an_adaptive_solve_that_cannot_go_on_says_where_and_why(velocity, message):
    with pytest.raises(IntegrationError, match=f"solver 'dopri5' cannot go on at {message}"):
        adaptively(velocity)


def test_tolerances_that_no_step_meets_are_named():
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        ff.paths.CondOT().coefficients(t)  # raises outside [0, 1]
        return x.sin()

    with pytest.raises(IntegrationError, match=r"at t = [01]\S*: no step is small enough for rtol and atol"):
        adaptively(velocity, rtol=1e-30, atol=1e-30)


def test_a_solve_that_takes_too_many_steps_ends(monkeypatch):
    monkeypatch.setattr(adaptive, "_MOST_STEPS", 5)
    with pytest.raises(IntegrationError, match=r"cannot go on at t = 0\.\d+: 5 steps did not reach the end"):
        adaptively(lambda x, t: (30 * x).sin(), rtol=1e-8, atol=1e-8)


def test_errors_of_the_velocity_itself_pass():
    def velocity(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("mine")

    with pytest.raises(AssertionError, match="mine"):
        adaptively(velocity)


@pytest.mark.parametrize("bad", [{"rtol": -1.0}, {"atol": math.nan}, {"rtol": 0.0, "atol": 0.0}, {"atol": math.inf}])
def test_bad_tolerances_are_named(bad):
    with pytest.raises(ValueError, match=r"(rtol|atol)"):
        adaptively(lambda x, t: x, **bad)
    with pytest.raises(TypeError, match="rtol must be a number, got str"):
        adaptively(lambda x, t: x, rtol="1e-5")


def test_an_adaptive_solve_stays_between_its_ends():
    """A slow velocity makes the guess of the first step look far ahead."""
    times = []

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        times.append(t[0].item())
        return ff.paths.CondOT().coefficients(t).alpha[:, None] * 1e-4 * x

    adaptively(velocity)
    assert min(times) >= 0.0
    assert max(times) <= 1.0


def test_an_empty_batch_has_an_empty_density():
    for solver in (*SOLVERS, "dopri5"):
        if solver == "dopri5":
            pytest.importorskip("torchdiffeq")
        r = ff.log_likelihood(lambda x, t: x, X[:0], num_steps=2, solver=solver)
        assert r.log_prob.shape == (0,)


@pytest.mark.parametrize("solver", SOLVERS)
def test_fixed_steps_mark_the_samples_that_are_not_finite(solver):
    x0 = torch.tensor([[0.1], [2.0]])
    x = sample_ode(lambda x, t: torch.where(x > 1.5, math.nan, x), x0, num_steps=3, solver=solver)
    assert x.isfinite().flatten().tolist() == [True, False]
