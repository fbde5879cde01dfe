"""Tangents by two VJPs, as ``torch.autograd.functional.jvp`` takes them, and gradients through those."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastflow as ff
from fastflow.nn.norm import layer_norm
from tests.ops.replace.central_differences import Function, Point, _along, _dot

R = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=R)


def assert_right(f: Function, *x: Tensor) -> None:
    """Compare the gradient of a function of the tangent, in all its arguments, with central differences."""
    p = Point(f, x)
    num, z = len(x), tuple(y.clone().requires_grad_() for y in (*p.x, *p.t))
    _, tangent = torch.autograd.functional.jvp(f, z[:num], z[num:], create_graph=True)
    loss = _dot(p.w, (tangent,)) + 0.5 * tangent.square().sum()
    grads = torch.autograd.grad(loss, z, materialize_grads=True)
    torch.testing.assert_close(_dot(grads, p.d), _along(p.tangent, (*p.x, *p.t), p.d), rtol=1e-5, atol=1e-5)


CASES = {
    "layer norm": (lambda x, w, b: F.layer_norm(x, (5,), w, b), (normal(2, 3, 5), normal(5), normal(5))),
    "layer norm, bias alone": (lambda x, b: F.layer_norm(x, (5,), None, b), (normal(2, 3, 5), normal(5))),
    "layer norm, one sample": (lambda x, w: F.layer_norm(x, (3, 5), w), (normal(3, 5), normal(3, 5))),
    "batch norm": (lambda x, w: F.batch_norm(x, None, None, w, training=True), (normal(3, 4, 2), normal(4))),
    "instance norm": (lambda x, w: F.instance_norm(x, weight=w), (normal(2, 4, 3), normal(4))),
    "weight norm": (lambda v, g: torch._weight_norm(v, g, 0), (normal(3, 4), normal(3, 1))),
    "attention": (lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True), (normal(1, 2, 5, 4),) * 3),
}


@pytest.mark.parametrize("name", CASES)
def test_replaced_ops(name: str) -> None:
    f, x = CASES[name]
    with ff.replace_ops():
        assert_right(f, *x)


def test_a_block_of_pytorch() -> None:
    """PyTorch's own is up to 36 % off here."""
    block = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=True).double()
    with ff.replace_ops():
        assert_right(block, normal(2, 5, 8))


def test_our_layer_norm() -> None:
    assert_right(layer_norm, normal(2, 3, 5))


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 2, (torch.bfloat16, torch.float32), (torch.bfloat16,) * 2])
@pytest.mark.parametrize("given", [(True, True), (True, False), (False, False)])
def test_the_gradients_of_layer_norm_are_pytorchs(
    dtypes: tuple[torch.dtype, torch.dtype], given: tuple[bool, bool]
) -> None:
    """Bit for bit in ordinary training; with a graph, or batched, to rounding."""
    x = normal(2, 3, 5).to(dtypes[0]).requires_grad_()
    w, b = (normal(5).to(dtypes[1]).requires_grad_() if is_given else None for is_given in given)
    inputs, g = [z for z in (x, w, b) if z is not None], normal(2, 3, 5).to(dtypes[0])
    expected = torch.autograd.grad(F.layer_norm(x, (5,), w, b), inputs, g)
    with ff.replace_ops():
        out = F.layer_norm(x, (5,), w, b)
    assert torch.equal(out, F.layer_norm(x, (5,), w, b))
    assert all(map(torch.equal, torch.autograd.grad(out, inputs, g, retain_graph=True), expected))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtypes[0] == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(torch.autograd.grad(out, inputs, g, create_graph=True), expected, **tolerance)
    for has_graph in (False, True):
        batched = torch.autograd.grad(
            out, inputs, torch.stack([2 * g, g]), retain_graph=True, create_graph=has_graph, is_grads_batched=True
        )
        torch.testing.assert_close(tuple(y[1] for y in batched), expected, **tolerance)
