"""Conversions at and near the ends of a path, in every dtype, against float64."""

import contextlib
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from fastflow import paths as P

PATHS = [
    P.CondOT(),
    P.SigmaMin(0.0),
    P.SigmaMin(1e-6),
    P.Cosine(),
    P.Polynomial(1),
    P.Polynomial(2.5),
    P.VP(),
    P.LinearVP(),
]
PAIRS = list(itertools.permutations(("velocity", "x1", "noise", "score"), 2))
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
ONE, HALF = torch.ones(1, 1), torch.full((1, 1), 0.5)
every_path = pytest.mark.parametrize("path", PATHS, ids=repr)


def divides_by_zero(path: P.Path, t: float, source: str, target: str) -> bool:
    """Return True if a formula of the docstring divides by zero at an end, where alpha, beta or d_alpha is 0."""
    if t == 1.0:
        return getattr(path, "sigma_min", 0.0) == 0.0 and (source == "x1" or target == "score")
    if t != 0.0 or isinstance(path, P.VP):
        return False
    if source == "velocity":
        return getattr(path, "n", 1) > 1
    return source in ("noise", "score") and target in ("x1", "velocity")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("end", [0, 1])
@every_path
def test_an_end_converts_right_or_raises(path, end, dtype):
    t = torch.tensor([path.domain[end]], dtype=dtype)
    if not path.domain[0] <= t.item() <= path.domain[1]:
        pytest.skip("rounded out of the domain")
    for source, target in PAIRS:
        names = {"path": path, "source": source, "target": target}
        if divides_by_zero(path, t.item(), source, target):
            with pytest.raises(ValueError, match=rf"t must stay where .* is not 0 to convert {source} to {target}"):
                P.convert(ONE, HALF, t, **names)
        else:
            got, want = P.convert(ONE, HALF, t, **names), P.convert(ONE.double(), HALF.double(), t.double(), **names)
            torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("path", [P.VP(), P.LinearVP()], ids=repr)
def test_an_end_that_is_rounded_out_of_the_domain_gives_no_infinity(path, dtype):
    """bf16 and fp16 round 0.99999 to 1, where d_beta is infinite."""
    t = torch.tensor([path.domain[1]], dtype=dtype)
    for source, target in PAIRS:
        with contextlib.suppress(ValueError):
            assert P.convert(ONE, HALF, t, path=path, source=source, target=target).isfinite().all()


@every_path
def test_times_near_the_ends_keep_their_digits(path):
    """beta and alpha are small there, and a difference of rounded numbers would lose them."""
    steps = [2.0**-24, 3e-7, 1e-5, 1e-3, 0.1]
    t = torch.tensor([*steps, *(1 - s for s in steps)])
    low, high = path.domain
    t = t[(t.double() >= low) & (t.double() <= high)]
    got, want = path.coefficients(t), path.coefficients(t.double())
    for name, a, b in zip(got._fields, got, want):
        torch.testing.assert_close(a.double(), b, rtol=5e-6, atol=1e-38, msg=name)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
def test_low_precision_values_are_rounded_once(dtype):
    """beta = 0.01 and xt − alpha x1 in bf16 would both be off."""
    x1, xt = torch.tensor([[1.0, 0.3]], dtype=dtype), torch.tensor([[2.0, 0.7]], dtype=dtype)
    for source, target in PAIRS:
        got = P.convert(x1, xt, 0.99, path=P.CondOT(), source=source, target=target)
        want = P.convert(x1.float(), xt.float(), 0.99, path=P.CondOT(), source=source, target=target)
        assert got.dtype == dtype
        assert torch.equal(got, want.to(dtype)), (source, target)


def test_mixed_dtypes_promote():
    assert P.convert(ONE.half(), ONE, 0.5, path=P.VP(), source="x1", target="noise").dtype == torch.float32
    assert P.convert(ONE, ONE.double(), 0.5, path=P.VP(), source="x1", target="noise").dtype == torch.float64


@pytest.mark.parametrize("end", [0.0, 1.0])
def test_where_nothing_is_read_a_division_by_zero_shows(end, monkeypatch):
    """As on a GPU: inf or NaN, never a finite number."""
    monkeypatch.setitem(P.convert.__globals__, "readable", lambda x: False)
    for path in (P.CondOT(), P.SigmaMin(0.0), P.Cosine(), P.Polynomial(1)):
        for source, target in PAIRS:
            if divides_by_zero(path, end, source, target):
                got = P.convert(ONE, HALF, end, path=path, source=source, target=target)
                assert not got.isfinite().any(), (path, source, target)


class Clipped(P.CondOT):
    """A path with an infinite rate."""

    def velocity(self, t):
        return 1.0, -1 / (1 - t).sqrt(), 0.0


def test_an_infinite_coefficient_raises():
    for source, target in (("noise", "velocity"), ("velocity", "x1"), ("score", "velocity")):
        with pytest.raises(ValueError, match=rf"is finite to convert {source} to {target}"):
            P.convert(ONE, HALF, 1.0, path=Clipped(), source=source, target=target)


def test_transforms_see_the_same_ends():
    def convert(t: Tensor) -> Tensor:
        return P.convert(ONE, HALF, t, path=P.Cosine(), source="velocity", target="score").sum()

    ends = torch.tensor([0.5, 1.0])
    for call in (lambda: torch.vmap(convert)(ends), lambda: torch.func.grad(convert)(ends[1])):
        with pytest.raises(ValueError, match="beta is not 0"):
            call()


@pytest.mark.parametrize(
    ("value", "xt", "error", "message"),
    [
        (ONE.int(), ONE, TypeError, "value must have a floating point dtype, got torch.int32"),
        (ONE, ONE.int(), TypeError, "xt must have a floating point dtype, got torch.int32"),
        (1.0, ONE, TypeError, "value must be a tensor, got float"),
        (ONE[0, 0], ONE[0, 0], ValueError, r"xt must be \[B, ...\], got a scalar"),
        (ONE[0], ONE, ValueError, "value must have the shape of xt"),
    ],
)
def test_bad_values_are_named(value, xt, error, message):
    with pytest.raises(error, match=message):
        P.convert(value, xt, 0.5, path=P.CondOT(), source="x1", target="noise")


PARAMETERS = {
    "sigma": (P.Tube, P.SchrodingerBridge, lambda v: P.build("tube", sigma=v), lambda v: P.build("bridge", sigma=v)),
    "sigma_min": (P.SigmaMin, lambda v: P.build("sigma_min", sigma=v)),
    "n": (P.Polynomial,),
    "beta_min": (lambda v: P.VP(beta_min=v),),
    "beta_max": (lambda v: P.VP(beta_max=v),),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_of_paths_are_finite_numbers(name):
    for make in PARAMETERS[name]:
        for value in ("a", "0.1", True, [0.1], torch.ones(2), torch.tensor(0.1, requires_grad=True), 1j):
            with pytest.raises(TypeError, match=f"^{name} must be a number, got "):
                make(value)
        for value in (math.nan, math.inf, -math.inf):
            with pytest.raises(ValueError, match=f"^{name} must be finite, got {value}"):
                make(value)
        with pytest.raises(ValueError, match=rf"{name}.* must satisfy .*got .*-1"):
            make(-1)


@pytest.mark.parametrize("name", ["tube", "bridge", "sigma_min", "independent"])
def test_a_missing_width_is_named(name):
    with pytest.raises(ValueError, match=f"sigma must be given for path '{name}', got None"):
        P.build(name)


def test_parameters_are_stored_as_floats():
    for number in (torch.tensor(0.25), np.float32(0.25), np.array(0.25)[()]):
        path = P.Tube(number)
        assert type(path.sigma) is float
        assert path == P.Tube(0.25)
    assert P.Polynomial(2) == P.Polynomial(2.0)
