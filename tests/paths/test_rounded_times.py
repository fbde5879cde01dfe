"""Times rounded to another dtype, beside the bounds of a path and beyond: finite and right, or an error."""

import pytest
import torch

import fastflow as ff
from fastflow import _checks
from tests.flows import PATHS

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
OPEN = [path for path in PATHS if path.domain != (0.0, 1.0)]
UNREAD = [lambda low, high: low - 0.25, lambda low, high: high + 0.25, lambda low, high: 1.0, lambda low, high: 0.0]


def everything(path, t):
    """All that is computed at times t, in float64."""
    x0, x1, z, pred = torch.randn(4, t.numel(), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    options = {"path": path, "noise": z}
    yield from path.coefficients(t)
    yield ff.interpolate(x0, x1, t, **options)
    yield ff.target_velocity(x0, x1, t, **options)
    yield from path.sample(x0, x1, t, noise=z)
    yield ff.flow_matching_loss(pred, x0, x1, t, **options)
    yield ff.flow_matching_loss(pred, x0, x1, t, **options, reduction="none")


def assert_those_of(path, t, inside):
    """The values at t are those at times inside the domain, and finite."""
    for got, expected in zip(everything(path, t), everything(path, inside), strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, expected.to(got.dtype), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_sampled_times_may_be_rounded(path, distribution, dtype):
    """In bfloat16, 1 in 512 uniform times rounds to 1, where the loss of VP is infinite."""
    t = ff.paths.sample_times(path, 20_000, seed=2, distribution=distribution, std=3.0).to(dtype)
    wide = t.to(_checks.at_least_float32(t))
    assert_those_of(path, t, wide.clamp(*path.domain))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_the_bounds_themselves_in_every_dtype(path, dtype):
    ends = torch.tensor(path.domain, dtype=dtype)
    assert_those_of(path, ends, ends.to(_checks.at_least_float32(ends)).clamp(*path.domain))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_times_beyond_the_rounded_bounds_are_refused(path, dtype):
    low, high = (torch.tensor(end, dtype=dtype) for end in path.domain)
    infinity = torch.tensor(torch.inf, dtype=dtype)
    for bad in (torch.nextafter(high, infinity), torch.nextafter(low, -infinity), torch.nan * low, infinity):
        t = torch.stack([0.5 * (low + high), bad])
        for values in (everything, lambda path, t: [path.coefficients(t)]):
            with pytest.raises(ValueError, match="t must lie in the domain"):
                list(values(path, t))


@pytest.mark.parametrize("beyond", UNREAD)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("path", OPEN, ids=repr)
def test_where_values_are_not_read_times_are_moved_into_the_domain(path, dtype, beyond, monkeypatch):
    """As on a GPU, where a check would wait for it."""
    monkeypatch.setattr(_checks, "readable", lambda x: False)
    t = torch.tensor([0.5, beyond(*path.domain)], dtype=dtype)
    assert_those_of(path, t, t.to(_checks.at_least_float32(t)).clamp(*path.domain))


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("path", OPEN, ids=repr)
def test_compiled_and_differentiated_at_rounded_times(path, backend, device):
    torch._dynamo.reset()
    x0, x1, z, pred = torch.randn(4, 2, 3, device=device)
    t = torch.tensor(path.domain, device=device).bfloat16().requires_grad_()

    def loss(pred, t):
        return ff.flow_matching_loss(pred, x0, x1, t, path=path, noise=z, backend=backend)

    value = loss(pred, t)
    torch.testing.assert_close(torch.compile(loss, backend="aot_eager", fullgraph=True)(pred, t), value)
    inside = t.detach().float().clamp(*path.domain)
    torch.testing.assert_close(value, loss(pred, inside), rtol=1e-5, atol=1e-5)
    (slope,) = torch.autograd.grad(value, t)
    assert slope.dtype == t.dtype
    assert slope.isfinite().all()
    out, tangent = torch.func.jvp(loss, (pred, t.detach()), (pred, torch.ones_like(t)))
    assert out.isfinite()
    assert tangent.isfinite()


def test_numbers_are_as_exact_as_the_data():
    x0, x1 = torch.randn(2, 3, 4, dtype=torch.float64)
    exact = ff.interpolate(x0, x1, 0.3, path=ff.paths.CondOT())
    torch.testing.assert_close(exact, 0.3 * x1 + 0.7 * x0, rtol=1e-13, atol=1e-13)
    half = ff.interpolate(x0.bfloat16(), x1.bfloat16(), 0.3, path=ff.paths.CondOT(), dtype=torch.float32)
    torch.testing.assert_close(half, 0.3 * x1.bfloat16().float() + 0.7 * x0.bfloat16().float(), rtol=1e-6, atol=1e-6)
