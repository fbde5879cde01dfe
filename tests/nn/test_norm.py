"""The norms: PyTorch's values, and second derivatives that PyTorch's fused layer norm gets wrong."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vmap

from fastflow.nn.norm import RMSNorm
from fastflow.ops.norm import layer_norm
from tests.compare import assert_close

Norm = Callable[[Tensor], Tensor]


NORMS: dict[str, Callable[[int], Norm]] = {"layer": lambda size: layer_norm, "rms": lambda size: RMSNorm(size).double()}


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_written_out_form_equals_the_fused_one(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    norm = layer_norm if name == "layer" else RMSNorm(12).to(dtype)
    x = (3.0 + 2.0 * draw(5, 7, 12)).to(dtype)
    fused = norm(x)
    written_out = vmap(norm)(x)
    assert fused.dtype == written_out.dtype == dtype
    assert_close(written_out, fused, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize("mode", ["func", "dual numbers", "jvp of vmap"])
def test_gradient_through_the_tangent(name: str, mode: str) -> None:
    """The directional derivative of ½‖w ∘ J(x) v‖² against central differences."""
    torch.manual_seed(0)
    x, v, w, direction = draw(4, 3, 8).unbind()
    norm = NORMS[name](8)

    def tangent(x: Tensor) -> Tensor:
        if mode == "func":
            return jvp(norm, (x,), (v,))[1]
        if mode == "jvp of vmap":
            return jvp(vmap(norm), (x,), (v,))[1]
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(norm(forward_ad.make_dual(x, v))).tangent

    def energy(x: Tensor) -> Tensor:
        return 0.5 * (w * tangent(x)).square().sum()

    if mode == "dual numbers":
        leaf = x.clone().requires_grad_()
        gradient = torch.autograd.grad(energy(leaf), leaf)[0]
    else:
        gradient = grad(energy)(x)
    step = 1e-5
    finite = (energy(x + step * direction) - energy(x - step * direction)) / (2 * step)
    assert_close((gradient * direction).sum(), finite, 1e-7)


@pytest.mark.parametrize("name", NORMS)
def test_gradcheck(name: str) -> None:
    x, norm = draw(2, 5).requires_grad_(), NORMS[name](5)
    assert torch.autograd.gradcheck(norm, x, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(norm, x, check_fwd_over_rev=True)


def test_pytorchs_layer_norm_still_needs_the_detour() -> None:
    """A failure means that PyTorch has fixed pytorch#196700."""
    torch.manual_seed(0)
    x, v, direction = draw(3, 2, 8).unbind()

    def slope(norm: Norm) -> Tensor:
        return (grad(lambda x: jvp(norm, (x,), (v,))[1].square().sum())(x) * direction).sum()

    assert not torch.isclose(slope(lambda x: F.layer_norm(x, (8,), eps=1e-6)), slope(layer_norm), rtol=1e-3)
