"""The linear layer in every mode of differentiation, against ``x @ weight.mT + bias`` in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

import fastflow as ff
from fastflow.ops.linear.api import twice_differentiable_linear
from tests.compare import DEVICE, assert_close, tensors
from tests.modes import MODES, Problem

B, N, IN, OUT, K = 2, 3, 4, 5, 3


def draw(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype)


def operands(seed: int, *lead: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    shapes = (B, N, IN), (OUT, IN), (OUT,)
    return [draw(seed + i, *lead, *shape, dtype=dtype) for i, shape in enumerate(shapes)]


def problem(dtype: torch.dtype = torch.float64) -> Problem:
    x, t, ts, xs = (operands(10 * i, *lead, dtype=dtype) for i, lead in enumerate(((), (), (K,), (K,))))
    w, ws = (draw(seed, *lead, B, N, OUT, dtype=dtype) for seed, lead in ((50, ()), (51, (K,))))
    return Problem(x, t, ts, xs, w, ws)


def written_out(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    out = x @ weight.mT
    return out if bias is None else out + bias


SOME = [(0, 1, 2), (0, 1), (0, 2), (1, 2), (0,), (1,), (2,)]


def check(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        assert_close(a, e, tolerance)


@pytest.mark.parametrize("positions", SOME, ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_mode(mode: str, positions: tuple[int, ...]) -> None:
    """Each subset of operands differentiated and mapped, each subset of tangents missing."""
    p = problem()
    check(*(MODES[mode](*p.at(positions, f)) for f in (twice_differentiable_linear, written_out)))


@pytest.mark.parametrize("mode", MODES)
def test_mode_of_the_public_function(mode: str) -> None:
    """It is PyTorch's own where no forward mode is active."""
    check(*(MODES[mode](f, problem()) for f in (ff.linear, written_out)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
def test_dtypes_are_pytorchs(mode: str, dtype: torch.dtype) -> None:
    p = problem(dtype)
    actual, expected = (tensors(MODES[mode](f, p)) for f in (ff.linear, torch.nn.functional.linear))
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in expected]


@pytest.mark.parametrize("bias", [True, False])
def test_numerically(bias: bool) -> None:
    leaves = [y.requires_grad_() for y in operands(0)[: 2 + bias]]
    options = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(twice_differentiable_linear, leaves if bias else (*leaves, None), **options)
    assert torch.autograd.gradgradcheck(ff.linear, leaves, check_fwd_over_rev=True)


def test_adjoint_identity() -> None:
    x, t, w = operands(0), operands(10), draw(50, B, N, OUT)
    _, t_out = jvp(ff.linear, tuple(x), tuple(t))
    grads = vjp(ff.linear, *x)[1](w)
    torch.testing.assert_close((w * t_out).sum(), sum((g * y).sum() for g, y in zip(grads, t)))


def test_third_derivatives_raise() -> None:
    x, weight, _ = operands(0)

    def energy(x: Tensor) -> Tensor:
        return jvp(lambda x: ff.linear(x, weight).sin(), (x,), (x.cos(),))[1].square().sum()

    def steepness(x: Tensor) -> Tensor:
        return grad(energy)(x).square().sum()

    with pytest.raises(NotImplementedError, match=r"fastflow\.linear has no third derivative"):
        grad(steepness)(x)


@pytest.mark.parametrize("requires_grad", [True, False])
@pytest.mark.parametrize("mode", ["vmap of vjp", "grad of vmap of jvp", "jvp of grad"])
def test_weights_closed_over_get_no_gradient(mode: str, requires_grad: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """K probes through a model below ``torch.func`` never multiply for the gradient of its weights."""
    from fastflow.kernels.linear import aten

    x, weight, bias = operands(0)
    weight.requires_grad_(requires_grad)
    bias.requires_grad_(requires_grad)
    wanted: list[Any] = []

    def spied(function: Callable[..., Any], num: int) -> Callable[..., Any]:
        def spy(*args: Any) -> Any:
            wanted.extend(args[-num:])
            return function(*args)

        return spy

    monkeypatch.setattr(aten, "backward", spied(aten.backward, 1))
    monkeypatch.setattr(aten, "dual_backward", spied(aten.dual_backward, 2))

    def f(x: Tensor) -> Tensor:
        return twice_differentiable_linear(x.sin(), weight, bias).sin()

    ts = draw(60, K, B, N, IN)
    {
        "vmap of vjp": lambda: vmap(vjp(f, x)[1])(draw(61, K, B, N, OUT)),
        "grad of vmap of jvp": lambda: grad(lambda x: vmap(lambda t: jvp(f, (x,), (t,))[1])(ts).sum())(x),
        "jvp of grad": lambda: jvp(grad(lambda x: f(x).sum()), (x,), (ts[0],)),
    }[mode]()
    assert wanted
    assert not any(flag for wants in wanted for flag in wants[1:])
