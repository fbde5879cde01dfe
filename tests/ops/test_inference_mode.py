"""Derivatives inside ``torch.inference_mode()``: right where PyTorch keeps them, else an error, and never zero.

PyTorch 2.11 computes every tangent there as 0.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

import fastflow as ff

PATH = ff.paths.CondOT()
X, T = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.7])
OPS: dict[str, Callable[[Tensor], Tensor]] = {
    "attention": lambda x: ff.attention(x, x, x),
    "interpolate": lambda x: ff.interpolate(x, X, T, path=PATH),
    "target_velocity": lambda x: ff.target_velocity(x, X, T, path=PATH),
    "flow_matching_loss": lambda x: ff.flow_matching_loss(x + 1, X, X, T, path=PATH),
    "convert": lambda x: ff.paths.convert(x, X, T, path=PATH, source="velocity", target="x1"),
    "sample_ode": lambda x: ff.sample_ode(lambda x, t: -x, x, num_steps=2),
}
MODES: dict[str, Callable[[Callable[[Tensor], Tensor]], Tensor]] = {
    "jvp": lambda f: jvp(f, (X,), (X.cos(),))[1],
    "grad": lambda f: grad(lambda x: f(x).square().sum())(X),
    "vmap of grad": lambda f: vmap(grad(lambda x: f(x).square().sum()))(X.expand(2, 3, 4)),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("op", OPS)
def test_no_derivative_is_zero(op: str, mode: str) -> None:
    expected, message = MODES[mode](OPS[op]), None
    with torch.inference_mode():
        try:
            actual = MODES[mode](OPS[op])
        except RuntimeError as error:
            actual, message = expected, str(error)
    torch.testing.assert_close(actual, expected)
    assert message is None or "use torch.no_grad" in message


@pytest.mark.parametrize("op", OPS)
def test_a_dual_level_raises(op: str) -> None:
    with torch.inference_mode(), forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"use torch\.no_grad"):
        OPS[op](forward_ad.make_dual(X, X))


@pytest.mark.parametrize("op", OPS)
def test_values_are_those_outside(op: str) -> None:
    expected = OPS[op](X)
    with torch.inference_mode():
        torch.testing.assert_close(OPS[op](X), expected)
        torch.testing.assert_close(vmap(OPS[op])(X.expand(2, 3, 4))[1], expected)
