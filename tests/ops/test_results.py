"""Results of block ops belong to the caller: changing them in place changes no argument and is differentiated."""

import pytest
import torch
from torch import Tensor, nn
from torch.func import jvp

import fastflow as ff
from tests.compare import assert_close

X, W = (
    torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    for shape in ((2, 3, 4), (4, 4))
)
ZERO = torch.zeros_like(X)

OPS = {
    "linear": lambda x, w: ff.linear(x, w),
    "layer norm": lambda x, w: ff.layer_norm(x, w[0]),
    "layer norm, modulated": lambda x, w: ff.layer_norm(x, shift=w[0], scale=w[1]),
    "rms norm": lambda x, w: ff.rms_norm(x, w[0]),
    "gated add": lambda x, w: ff.gated_add(x, w[0], x),
    "gated add and norm": lambda x, w: ff.gated_add_layer_norm(x, w[0], x, w[1])[1],
    "gelu": lambda x, w: ff.gelu(x * w[0]),
    "silu": lambda x, w: ff.silu(x * w[0]),
    "swiglu": lambda x, w: ff.swiglu(x * w[0], x),
    "rope": lambda x, w: ff.rope(x * w[0], W[:3, :2].cos(), W[:3, :2].sin()),
}
ALONE = {
    "linear": lambda b: ff.linear(X[:1, 0], W, b),
    "layer norm": lambda b: ff.layer_norm(X, scale=ZERO, shift=b.expand(2, 3, 4)),
    "layer norm, per token": lambda b: ff.layer_norm(X, scale=ZERO, shift=b + ZERO),
    "rms norm": lambda b: ff.rms_norm(X[:1, :1], shift=b.view(1, 1, 4)),
    "gated add and norm": lambda b: ff.gated_add_layer_norm(X, ZERO, X, scale=ZERO, shift=b + ZERO)[1],
}


@pytest.mark.parametrize("name", OPS)
def test_changed_in_place(name: str) -> None:
    found = []
    for double in (lambda y: y.mul_(2), lambda y: y * 2):
        w = W.clone().requires_grad_()
        out, tangent = jvp(lambda x, w=w, double=double: double(OPS[name](x, w)), (X,), (X.cos(),))
        plain = double(OPS[name](X.clone().requires_grad_(), w))
        found.append((out, tangent, *torch.autograd.grad((out * tangent).sum() + plain.square().sum(), w)))
    for actual, expected in zip(*found, strict=True):
        assert_close(actual, expected, 1e-13)


@pytest.mark.parametrize("name", ALONE)
def test_changing_a_result_leaves_the_tangent_of_its_only_term(name: str) -> None:
    b, v = torch.zeros(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)

    def tangent(b: Tensor) -> Tensor:
        return ALONE[name](b).mul_(3) + b

    assert_close(jvp(tangent, (b,), (v,))[1], torch.full_like(ALONE[name](b), 4.0), 1e-13)
    assert (v == 1).all()


def test_in_place_layers_of_a_stock_model() -> None:
    model = nn.Sequential(
        nn.Linear(4, 8), nn.ReLU(inplace=True), nn.LayerNorm(8), nn.SiLU(inplace=True), nn.Linear(8, 4)
    )
    model.double()
    expected = jvp(model, (X,), (X.cos(),))
    with ff.replace_ops():
        actual = jvp(model, (X,), (X.cos(),))
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-12)
    assert torch.autograd.grad(actual[1].square().sum(), model[0].weight)[0].abs().sum() > 0


@pytest.mark.parametrize("eps", [-1.0, float("nan"), float("inf"), -1])
def test_eps(eps: float) -> None:
    for call in (ff.layer_norm, ff.rms_norm, lambda x, eps: ff.gated_add_layer_norm(x, x, x, eps=eps)):
        with pytest.raises(ValueError, match=r"^eps must be "):
            call(X, eps=eps)
