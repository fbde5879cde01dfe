"""The forward kernel against float64 math attention: shapes, masks, tangents, layouts, memory it must not write."""

import pytest
import torch

from fastflow.kernels.attention import cpu
from tests.compare import assert_close

pytest.importorskip("triton")

from fastflow.kernels.attention import _tile, forward
from fastflow.kernels.attention.config import Config
from tests.kernels.attention.problems import GuardedAllocator, Problem, assert_accurate, oracle


def run(x: Problem):
    return forward.dual_forward(*x.primals, *x.ts, x.mask_tensor, **x.arguments())


@pytest.fixture
def guarded(monkeypatch):
    """Outputs filled with NaN between guard zones."""
    allocate = GuardedAllocator()
    monkeypatch.setattr(torch, "empty", allocate)
    yield
    monkeypatch.undo()
    assert allocate.blocks
    allocate.check()


def check(x: Problem) -> None:
    out, t_out, lse, mu = run(x)
    (truth, *t_truth), _ = oracle(x, torch.float64)
    (base, *t_base), _ = oracle(x, x.dtype)
    assert out.dtype == x.dtype
    assert out.is_contiguous()
    assert_accurate(out, truth, base, 2, "out")
    if t_truth:
        assert t_out.dtype == (x.tangent_dtype or x.dtype)
        assert_accurate(t_out, t_truth[0], t_base[0], 2, "t_out")
    else:
        assert t_out is None
        assert mu is None
    if x.dtype == torch.float32:
        double = [None if y is None else y.double() for y in (*x.primals, *x.ts)]
        *_, lse_truth, mu_truth = cpu.dual_forward(*double, x.mask_tensor, **x.arguments())
        assert ((lse == torch.inf) == (lse_truth == torch.inf)).all()
        assert_close(lse.nan_to_num(posinf=0), lse_truth.nan_to_num(posinf=0), 1e-6, "lse")
        if mu is not None:
            assert_close(mu, mu_truth, 1e-5, "mu")


CASES = {
    "one query, one key": Problem(Nq=1, Nk=1),
    "block - 1": Problem(Nq=31, Nk=31),
    "block": Problem(Nq=32, Nk=32),
    "block + 1": Problem(Nq=33, Nk=33),
    "primes": Problem(Nq=7, Nk=65),
    "one query": Problem(Nq=1, Nk=65, B=2),
    "one key": Problem(Nq=65, Nk=1),
    "head dim 8": Problem(D=8, Dv=8),
    "head dim 40, value dim 24": Problem(D=40, Dv=24),
    "head dim 72": Problem(D=72, Dv=72),
    "head dim 80, value dim 96": Problem(D=80, Dv=96, Hq=1, Hk=1),
    "head dim 96, value dim 16": Problem(D=96, Dv=16, Hq=1, Hk=1),
    "head dim 100": Problem(D=100, Dv=12, Hq=1, Hk=1),
    "grouped heads": Problem(B=2, Hq=4, Hk=2),
    "one key head": Problem(Hq=3, Hk=1, is_causal=True),
    "causal, more queries": Problem(Nq=70, Nk=33, is_causal=True, Hq=1, Hk=1),
    "causal, more keys": Problem(Nq=33, Nk=70, is_causal=True, Hq=1, Hk=1),
    "bool mask": Problem(mask="bool"),
    "bool mask, broadcast": Problem(mask="bool-broadcast", B=2),
    "bool mask, a row sees nothing": Problem(mask="bool-row"),
    "bias": Problem(mask="bias"),
    "bias, broadcast": Problem(mask="bias-broadcast", B=2),
    "bias, a row sees nothing": Problem(mask="bias-row"),
    "no tangents": Problem(tangents=""),
    "tangent of q": Problem(tangents="q"),
    "tangent of k": Problem(tangents="k", K=2),
    "tangent of v": Problem(tangents="v"),
    "tangents of k and v": Problem(tangents="kv", K=3, Hq=1, Hk=1),
    "2 tangents": Problem(K=2, mask="bias"),
    "3 tangents": Problem(K=3, is_causal=True, Nq=40, Hq=1, Hk=1),
    "5 tangents": Problem(K=5, Hq=1, Hk=1),
    "slices of a fused qkv": Problem(layout="fused", Nk=17, D=24, Dv=24),
    "transposed": Problem(layout="transposed"),
    "odd strides": Problem(layout="odd", B=2),
    "expanded key and value": Problem(layout="expanded", B=2),
    "negative scale": Problem(scale=-0.7),
}
HALF_CASES = [
    "block + 1",
    "head dim 72",
    "head dim 40, value dim 24",
    "grouped heads",
    "causal, more keys",
    "3 tangents",
]


@pytest.mark.slow
@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("name", CASES)
def test_float32(name, device):
    check(Problem(**_fields(CASES[name], device=device)))


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("name", HALF_CASES)
def test_float16(name, device):
    check(Problem(**_fields(CASES[name], device=device, dtype=torch.float16)))


@pytest.mark.usefixtures("guarded")
def test_float32_tangents_beside_float16_primals(device):
    check(Problem(dtype=torch.float16, tangent_dtype=torch.float32, device=device))


def _fields(x: Problem, **changes) -> dict:
    names = ["B", "Hq", "Hk", "Nq", "Nk", "D", "Dv", "K", "tangents", "mask", "is_causal", "scale", "layout"]
    return {name: getattr(x, name) for name in names} | changes


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("size", [1, 2, 3])
def test_any_number_of_tangents_a_program(size, device, monkeypatch):
    monkeypatch.setattr(forward, "config_for", lambda *_: Config(16, 32, 4, 2, size))
    check(Problem(K=5, Hq=1, Hk=1, device=device))


def test_large_logits_stay_finite(device):
    x = Problem(scale=300.0, device=device)
    assert all(y.isfinite().all() for y in run(x))


def test_a_row_that_sees_nothing_is_zero(device):
    for mask in ("bool-row", "bias-row"):
        out, t_out, lse, mu = run(Problem(mask=mask, K=2, device=device))
        assert (out[:, :, 1] == 0).all()
        assert (t_out[:, :, :, 1] == 0).all()
        assert (lse[:, :, 1] == torch.inf).all()
        assert (mu[:, :, :, 1] == 0).all()


def test_zero_tangents_give_exactly_zero(device):
    x = Problem(device=device)
    _, t_out, _, mu = forward.dual_forward(*x.primals, *(torch.zeros_like(t) for t in x.ts), None, **x.arguments())
    assert (t_out == 0).all()
    assert (mu == 0).all()


def test_same_bits_twice(device):
    for first, second in zip(run(Problem(K=3, device=device)), run(Problem(K=3, device=device))):
        assert torch.equal(first, second)


def test_every_tangent_is_what_it_is_alone(device):
    x = Problem(K=3, device=device)
    _, t_out, _, mu = run(x)
    for i in range(3):
        _, alone, _, mu_alone = forward.dual_forward(*x.primals, *(t[i : i + 1] for t in x.ts), None, **x.arguments())
        assert_close(t_out[i], alone[0], 1e-6)
        assert_close(mu[i], mu_alone[0], 1e-6)


def test_pieces_hold_the_row_and_never_pad_72_to_128():
    for width in range(1, 257):
        first, second = _tile.pieces(width)
        assert first + second >= width
        assert first + second <= max(16, 2 * width)
    assert [_tile.pieces(width) for width in (64, 72, 80, 96, 100, 128)] == [
        (64, 0), (64, 16), (64, 16), (64, 32), (128, 0), (128, 0),
    ]  # fmt: skip
