"""Every path: velocity, end points, training times and conversions."""

import math

import pytest
import torch

import fastflow as ff

P = ff.paths
PATHS = [
    P.CondOT(),
    P.SigmaMin(0.1),
    P.Cosine(),
    P.Polynomial(1),
    P.Polynomial(2.5),
    P.VP(),
    P.VP(beta_min=0.5, beta_max=3.0),
    P.LinearVP(),
    P.Tube(0.3),
    P.SchrodingerBridge(0.7),
]
AFFINE = [path for path in PATHS if not isinstance(path, (P.Tube, P.SchrodingerBridge))]
QUANTITIES = ("velocity", "x1", "noise", "score")


def inner_times(path, num=64):
    low, high = path.domain
    return low + (high - low) * torch.linspace(0.02, 0.98, num, dtype=torch.float64)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_velocity_is_the_derivative_of_position(path):
    t = inner_times(path)
    c, rate = torch.func.jvp(path.coefficients, (t,), (torch.ones_like(t),))
    for x, dx in zip(c[3:], rate[:3]):
        torch.testing.assert_close(x, dx, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_coefficients_are_differentiable_in_t(path):
    t = inner_times(path, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: torch.stack(path.coefficients(t)), (t,), check_forward_ad=True)
    assert all(x.shape == t.shape for x in path.coefficients(t))


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_path_runs_from_source_to_data(path):
    low, high = (torch.tensor(end, dtype=torch.float64) for end in path.domain)
    start, end = path.coefficients(low), path.coefficients(high)
    left = math.exp(-0.25 * (path.beta_max + path.beta_min)) if isinstance(path, P.VP) else 0.0  # VP starts near noise
    tube = path.sigma if isinstance(path, P.Tube) else 0.0
    expected = {
        "alpha": (left, 1.0),
        "beta": (math.sqrt(1 - left**2), path.sigma_min if isinstance(path, P.SigmaMin) else 0.0),
        "gamma": (tube, tube),
    }
    for name, ends in expected.items():
        got = getattr(start, name).item(), getattr(end, name).item()
        assert got == pytest.approx(ends, abs=0.01), name  # singular ends are cut off by 1e-5 in t


def test_sigma_min_velocity_has_the_right_sign():
    """u = x1 - (1 - sigma) x0, so that u(x | x1) = (x1 - (1 - sigma) x) / (1 - (1 - sigma) t) [Lipman, eq. 21]."""
    path, t = P.SigmaMin(0.1), torch.tensor([0.3], dtype=torch.float64)
    x0, x1 = torch.randn(2, 1, 5, dtype=torch.float64)
    xt, u = path.sample(x0, x1, t)
    torch.testing.assert_close(u, (x1 - 0.9 * xt) / (1 - 0.9 * 0.3))


@pytest.mark.parametrize("path", PATHS, ids=repr)
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_sampled_times_stay_in_the_domain(path, distribution):
    t = P.sample_times(path, 100_000, seed=1, distribution=distribution, std=8.0)
    path.coefficients(t)
    assert all(x.isfinite().all() for x in path.coefficients(t))


def test_sampled_times_have_the_asked_distribution():
    u = P.sample_times(P.CondOT(), 100_000, seed=3)
    assert abs(u.mean() - 0.5) < 4 * (1 / 12 / u.numel()) ** 0.5
    logit = torch.logit(P.sample_times(P.CondOT(), 100_000, seed=3, distribution="logit_normal", mean=-0.4, std=1.5))
    assert abs(logit.mean() + 0.4) < 4 * 1.5 / logit.numel() ** 0.5
    assert abs(logit.std() - 1.5) < 4 * 1.5 / (2 * logit.numel()) ** 0.5


@pytest.mark.parametrize("path", AFFINE, ids=repr)
def test_conversions_invert_each_other(path):
    t = inner_times(path, 16)
    x0, x1 = torch.randn(2, 16, 3, dtype=torch.float64)
    xt, u = path.sample(x0, x1, t)
    beta = path.coefficients(t).beta.view(-1, 1)
    known = {"velocity": u, "x1": x1, "noise": x0, "score": -x0 / beta}
    for source in QUANTITIES:
        for target in QUANTITIES:
            value = P.convert(known[source], xt, t, path=path, source=source, target=target)
            torch.testing.assert_close(value, known[target], rtol=1e-8, atol=1e-8, msg=f"{source} -> {target}")


@pytest.mark.parametrize("path", AFFINE, ids=repr)
def test_conversions_hold_for_the_gaussian_marginal(path):
    """x1 ~ N(m, s^2) and x0 ~ N(0, 1) independent: score and posterior means are known in closed form."""
    m, s = 0.7, 1.3
    t = inner_times(path, 32)
    c = path.coefficients(t)
    x = torch.linspace(-3, 3, 32, dtype=torch.float64)
    variance = (c.alpha * s) ** 2 + c.beta**2
    score = -(x - c.alpha * m) / variance
    data = m + c.alpha * s**2 * (x - c.alpha * m) / variance
    noise = c.beta * (x - c.alpha * m) / variance
    known = {"score": score, "x1": data, "noise": noise, "velocity": c.d_alpha * data + c.d_beta * noise}
    for source in QUANTITIES:
        for target in QUANTITIES:
            value = P.convert(known[source], x, t, path=path, source=source, target=target)
            torch.testing.assert_close(value, known[target], rtol=1e-7, atol=1e-7, msg=f"{source} -> {target}")


def test_conversions_are_differentiable():
    value, xt = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True).unbind()
    t = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, requires_grad=True)

    def score(value, xt, t):
        return P.convert(value, xt, t, path=P.Cosine(), source="velocity", target="score")

    inputs = (value.detach().requires_grad_(), xt.detach().requires_grad_(), t)
    assert torch.autograd.gradcheck(score, inputs, check_forward_ad=True, check_batched_grad=True)


ONE = torch.ones(1, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: P.SigmaMin(1.5), ValueError, "sigma_min must satisfy 0 <= sigma_min < 1, got 1.5"),
        (lambda: P.Polynomial(0.5), ValueError, "n must satisfy n >= 1"),
        (lambda: P.VP(beta_min=3.0, beta_max=1.0), ValueError, "beta_min"),
        (lambda: P.Tube(-1.0), ValueError, "sigma must satisfy"),
        (lambda: P.SchrodingerBridge(-1.0), ValueError, "sigma must satisfy"),
        (lambda: P.CondOT().coefficients(torch.tensor([0, 1])), TypeError, "t must have a floating point dtype"),
        (lambda: P.CondOT().coefficients(torch.tensor([1.5])), ValueError, r"t must lie in the domain \[0.0, 1.0\]"),
        (lambda: P.VP().coefficients(torch.tensor([1.0])), ValueError, r"domain \[0.0, 0.99999\] of VP"),
        (lambda: P.CondOT().coefficients(torch.tensor([0.5, -0.1])), ValueError, r"got values in \[-0.1"),
        (lambda: P.CondOT().coefficients(torch.tensor([0.5, float("nan")])), ValueError, r"got values in \[nan"),
        (lambda: P.CondOT().coefficients(torch.tensor([float("nan")])), ValueError, "t must lie in the domain"),
        (
            lambda: P.sample_times(P.CondOT(), 3, seed=0, distribution="beta"),
            ValueError,
            "distribution must be one of 'uniform', 'logit_normal', got 'beta'",
        ),
        (
            lambda: P.convert(ONE, ONE, 0.5, path=P.CondOT(), source="epsilon", target="x1"),
            ValueError,
            "source must be one of 'velocity', 'x1', 'noise', 'score', got 'epsilon'",
        ),
        (
            lambda: P.convert(ONE, ONE[0], 0.5, path=P.CondOT(), source="x1", target="noise"),
            ValueError,
            "value must have the shape of xt",
        ),
        (
            lambda: P.convert(ONE, ONE, 0.5, path=P.Tube(0.1), source="x1", target="noise"),
            ValueError,
            "path must have gamma = 0",
        ),
        (
            lambda: P.convert(ONE, ONE, 1.0, path=P.CondOT(), source="x1", target="noise"),
            ValueError,
            "where beta is not 0 to convert x1 to noise",
        ),
        (
            lambda: P.convert(ONE, ONE, 0.0, path=P.CondOT(), source="score", target="velocity"),
            ValueError,
            "where alpha is not 0 to convert score to velocity",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()
