"""Many cotangents of one graph: each op's backward takes them together, and PyTorch's own ops are not used."""

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastflow as ff
from fastflow.ops._many_cotangents import many_cotangents, many_cotangents_expected
from fastflow.ops.activation.op import OP
from tests.compare import assert_close

X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
G = torch.randn(5, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def calls(monkeypatch):
    """Record the shape of the cotangent at each backward of an activation."""
    seen: list[torch.Size] = []
    backward, run = type(OP.backward).run, OP.backward

    def counted(step, call):
        if step is run:
            seen.append(call.g[0].shape)
        return backward(step, call)

    monkeypatch.setattr(type(OP.backward), "run", counted)
    return seen


def pulled(value: Tensor, x: Tensor, g: Tensor, **options: bool) -> Tensor:
    return torch.autograd.grad(value, x, g, is_grads_batched=True, retain_graph=True, **options)[0]


def one_by_one(f, x: Tensor) -> Tensor:
    return torch.stack([torch.autograd.grad(f(x), x, g)[0] for g in G])


def test_batched_cotangents_are_one_call(calls):
    x = X.clone().requires_grad_()
    with many_cotangents():
        assert many_cotangents_expected()
        value = ff.silu(x)
    assert not many_cotangents_expected()
    assert_close(pulled(value, x, G), one_by_one(torch.nn.functional.silu, x), 1e-12)
    assert calls == [G.shape]


def test_without_the_announcement_pytorch_differentiates(calls):
    x = X.clone().requires_grad_()
    assert_close(pulled(ff.silu(x), x, G), one_by_one(torch.nn.functional.silu, x), 1e-12)
    assert calls == []


def test_gradients_of_many_gradients():
    x, g = X.clone().requires_grad_(), G.clone().requires_grad_()
    with many_cotangents():
        grads = pulled(ff.silu(x), x, g, create_graph=True)
    got = torch.autograd.grad(grads.square().sum(), (x, g))
    y, c = X.clone().requires_grad_(), G.clone().requires_grad_()
    each = [torch.autograd.grad(torch.nn.functional.silu(y), y, one, create_graph=True)[0] for one in c]
    want = torch.autograd.grad(torch.stack(each).square().sum(), (y, c))
    for actual, expected in zip(got, want, strict=True):
        assert_close(actual, expected, 1e-12)


@pytest.mark.parametrize("num", [1, 5])
def test_one_backward_of_each_op_serves_a_chunk_of_a_divergence(num, calls):
    """Also where no gradient is recorded, and the tape is used in place of torch.func."""
    probes = G[:num]
    with torch.no_grad():
        got = ff.divergence(ff.silu, X, probes=probes, mode="reverse").divergence
    slope = torch.vmap(torch.vmap(torch.func.grad(torch.nn.functional.silu)))(X)
    assert_close(got, (probes.square() * slope).sum((0, 2)) / num, 1e-12)
    assert calls == ([G.shape] if num > 1 else [])


def test_checkpoints_record_the_same_graph_again(calls):
    def field(x: Tensor) -> Tensor:
        return checkpoint(lambda x: ff.silu(x.sin()), x, use_reentrant=False)

    with torch.no_grad():
        got = ff.divergence(field, X, probes=G).divergence
        assert_close(got, ff.divergence(lambda x: ff.silu(x.sin()), X, probes=G).divergence, 1e-12)
    assert calls[0] == G.shape
