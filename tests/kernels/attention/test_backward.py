"""The backward kernels against autograd over float64 math attention: every gradient, every way of launching them."""

import pytest
import torch

pytest.importorskip("triton")

from fastflow.kernels.attention import backward, forward
from fastflow.kernels.attention.config import Config
from tests.kernels.attention.problems import GuardedAllocator, Problem, assert_accurate, oracle

NAMES = ("dq", "dk", "dv", "dtq", "dtk", "dtv")


def run(x: Problem, **options):
    saved = forward.dual_forward(*x.primals, *x.ts, x.mask_tensor, **x.arguments())
    return backward.dual_backward(x.G, x.H, *x.primals, *x.ts, x.mask_tensor, *saved, **x.arguments(), **options)


@pytest.fixture
def guarded(monkeypatch):
    """Outputs filled with NaN between guard zones."""
    allocate = GuardedAllocator()
    monkeypatch.setattr(torch, "empty", allocate)
    yield
    monkeypatch.undo()
    assert allocate.blocks
    allocate.check()


@pytest.fixture(params=["joint", "split"])
def launches(request, monkeypatch):
    """Both ways to launch a side: one joint kernel, or the primals' kernel and then the plain one."""
    split = request.param == "split"
    tiles = Config(16, 32, 4, 2)
    monkeypatch.setattr(
        backward, "config_for", lambda x, width, direction: None if split and "joint" in direction else tiles
    )


def check(x: Problem, **options) -> None:
    grads = run(x, **options)
    _, truth = oracle(x, torch.float64)
    _, base = oracle(x, x.dtype)
    given = [*x.primals, *x.ts]
    for i, name in enumerate(NAMES):
        wanted = i < 3 or (x.H is not None and (given[i] is not None or "need_tangent_grads" in options))
        assert (grads[i] is not None) == wanted, name
        if wanted:
            assert grads[i].is_contiguous()
            assert grads[i].dtype == (x.H if given[i] is None else given[i]).dtype
            assert_accurate(grads[i], truth[i], base[i], 3, name)


ONE_HEAD = {"Hq": 1, "Hk": 1}  # where heads do not matter: the interpreter's time is per program
CASES = {
    "one query, one key": {"Nq": 1, "Nk": 1},
    "block + 1": {"Nq": 33, "Nk": 33, **ONE_HEAD},
    "primes": {"Nq": 7, "Nk": 65, **ONE_HEAD},
    "one key": {"Nq": 65, "Nk": 1, **ONE_HEAD},
    "head dim 72, value dim 40": {"D": 72, "Dv": 40, **ONE_HEAD},
    "head dim 8, value dim 80": {"D": 8, "Dv": 80, **ONE_HEAD},
    "value dim 160": {"D": 8, "Dv": 160, "Nq": 18, "Nk": 9, **ONE_HEAD},  # row terms by smaller blocks
    "grouped heads": {"B": 2, "Hq": 4, "Hk": 2, "Nq": 17, "Nk": 9},
    "causal, more queries, one key head": {"Nq": 50, "Nk": 33, "Hk": 1, "is_causal": True},
    "causal, more keys": {"Nq": 33, "Nk": 70, "is_causal": True, **ONE_HEAD},
    "bool mask, a row sees nothing": {"mask": "bool-row"},
    "bias, broadcast": {"mask": "bias-broadcast", "B": 2, "Nk": 17},
    "slices of a fused qkv": {"layout": "fused", "Nk": 17},
    "2 tangents": {"K": 2, **ONE_HEAD},
}


@pytest.mark.slow
@pytest.mark.usefixtures("guarded", "launches")
@pytest.mark.parametrize("name", CASES)
def test_float32(name, device):
    check(Problem(**CASES[name], device=device))


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("name", ["block + 1", "head dim 72, value dim 40", "2 tangents"])
def test_float16(name, device):
    check(Problem(**CASES[name], dtype=torch.float16, device=device))


@pytest.mark.slow
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize(
    "fields",
    [{"K": 3, "tangents": "kv", **ONE_HEAD}, {"K": 5, "Nq": 7, **ONE_HEAD}, {"layout": "transposed"},
     {"layout": "odd", "mask": "bias"}, {"layout": "expanded", "B": 2, "Nk": 17},
     {"dtype": torch.float16, "tangent_dtype": torch.float32}, {"scale": -0.7}],
    ids=str,
)  # fmt: skip
def test_further_inputs(fields, device):
    check(Problem(**fields, device=device))


@pytest.mark.slow
@pytest.mark.usefixtures("guarded", "launches")
@pytest.mark.parametrize("tangents", ["", "q", "k", "v", "qk"])
def test_missing_tangents(tangents, device):
    check(Problem(tangents=tangents, Nk=17, device=device))


@pytest.mark.usefixtures("guarded", "launches")
@pytest.mark.parametrize("tangents", ["q", "kv"])
def test_gradients_of_missing_tangents(tangents, device):
    check(Problem(tangents=tangents, Nk=17, device=device), need_tangent_grads=True)


@pytest.mark.usefixtures("guarded", "launches")
@pytest.mark.parametrize("present", ["g", "h", "neither"])
def test_missing_cotangents(present, device):
    check(Problem(g=present == "g", h=present == "h", K=2, **ONE_HEAD, device=device))


def test_gradients_of_tangents_with_no_tangent_given(device):
    """They do not depend on the tangents: absent ones and zeros give the same."""
    x = Problem(device=device)
    saved = forward.dual_forward(*x.primals, None, None, None, None, **x.arguments())
    absent = backward.dual_backward(
        x.G, x.H, *x.primals, None, None, None, None, *saved, **x.arguments(), need_tangent_grads=True
    )
    zeros = [torch.zeros_like(t) for t in x.ts]
    saved = forward.dual_forward(*x.primals, *zeros, None, **x.arguments())
    zero = backward.dual_backward(x.G, x.H, *x.primals, *zeros, None, *saved, **x.arguments())
    for a, b in zip(absent, zero):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_no_tangent_cotangent_launches_the_plain_kernels(device, monkeypatch):
    launched = []
    monkeypatch.setattr(backward, "_run", lambda kernel, direction, *_: launched.append(direction))
    run(Problem(h=False, device=device))
    assert launched == ["dkdv-plain", "dq-plain"]


@pytest.mark.slow
@pytest.mark.usefixtures("launches")
@pytest.mark.parametrize("K", [1, 2])
def test_same_bits_twice(K, device):
    once, again = (run(Problem(K=K, Nq=17, Nk=35, **ONE_HEAD, device=device)) for _ in range(2))
    for first, second in zip(once, again):
        assert torch.equal(first, second)


def test_a_row_that_sees_nothing_gives_and_gets_nothing(device):
    x = Problem(mask="bool-row", device=device)
    grads = dict(zip(NAMES, run(x)))
    assert (grads["dq"][:, :, 1] == 0).all()
    assert (grads["dtq"][:, :, :, 1] == 0).all()
    x.G[:, :, 1] = 1e4
    x.H[:, :, :, 1] = 1e4
    for name, grad in zip(NAMES, run(x)):
        assert torch.equal(grad, grads[name]), name
