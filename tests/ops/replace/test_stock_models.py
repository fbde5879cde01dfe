"""Stock models, unmodified, inside ``replace_ops``, against math attention with the norms written out."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from fastflow import replace_ops
from tests.compare import assert_close, math_layer_norm, tensors
from tests.ops.replace.stock_models import STOCK, Stock, fastflow_dit

Mode = Callable[[Stock, Tensor, Tensor], object]


def _parameter_gradient(stock: Stock, loss: Tensor) -> Tensor:
    """All of it as one vector: a key's bias has no influence, so its own gradient is rounding error."""
    parameters = [p for p in stock.model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


def _energy(stock: Stock, x: Tensor) -> Tensor:
    return stock.function(x).pow(3).sum()


def _gradient_of_gradient(stock: Stock, x: Tensor, ts: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(_energy(stock, x), x, create_graph=True)
    return _parameter_gradient(stock, first.square().sum())


MODES: dict[str, Mode] = {
    "jvp": lambda stock, x, ts: jvp(stock.function, (x,), (ts[0],)),
    "backward through the jvp": lambda stock, x, ts: _parameter_gradient(
        stock, sum(y.square().sum() for y in jvp(stock.function, (x,), (ts[0],)))
    ),
    "jvp of grad": lambda stock, x, ts: jvp(grad(lambda x: _energy(stock, x)), (x,), (ts[0],)),
    "vmap over tangents": lambda stock, x, ts: vmap(lambda t: jvp(stock.function, (x,), (t,))[1])(ts),
    "backward": lambda stock, x, ts: _parameter_gradient(stock, _energy(stock, x)),
    "gradient of the gradient": _gradient_of_gradient,
}


@contextmanager
def written_out(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch, sdpa_kernel(SDPBackend.MATH):
        patch.setattr(F, "layer_norm", math_layer_norm)
        fast_path = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)  # it has no tangents
        yield
        torch.backends.mha.set_fastpath_enabled(fast_path)


def point(stock: Stock) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    draw = torch.randn(4, *stock.shape, dtype=torch.float64, generator=generator)
    return draw[0], draw[1:]


def assert_equal(actual: object, expected: object, name: str, tolerance: float = 1e-12) -> None:
    assert any(e.abs().max() > 1e-6 for e in tensors(expected))
    for a, e in zip(tensors(actual), tensors(expected), strict=True):
        assert_close(a, e, tolerance, name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", STOCK)
def test_stock_model(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = STOCK[name]()
    with replace_ops():
        actual = MODES[mode](stock, *point(stock))
    with written_out(monkeypatch):
        expected = MODES[mode](stock, *point(stock))
    assert_equal(actual, expected, name)


@pytest.mark.parametrize("mode", MODES)
def test_own_model_needs_no_context(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock = fastflow_dit()
    actual = MODES[mode](stock, *point(stock))
    with written_out(monkeypatch):
        monkeypatch.setattr("fastflow.nn.dit.attention", F.scaled_dot_product_attention)
        expected = MODES[mode](stock, *point(stock))
    assert_equal(actual, expected, mode)


@pytest.mark.parametrize("name", ["diffusers DiT", "transformers ViT"])
def test_stock_model_refuses_outside_the_context(name: str) -> None:
    """A failure means that PyTorch has learned the tangent of its fused attention."""
    stock = STOCK[name]()
    x, ts = point(stock)
    with pytest.raises(NotImplementedError, match=r"forward AD with .*flash_attention.* that does not support it"):
        jvp(stock.function, (x,), (ts[0],))


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("backward", ["inside", "outside", "forward outside"])
@pytest.mark.parametrize("name", STOCK)
def test_checkpointed_backward(name: str, backward: str, use_reentrant: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recomputation uses what the forward used, wherever the backward runs."""
    stock = STOCK[name]()
    x, _ = point(stock)
    stock.model.train()
    with written_out(monkeypatch):
        torch.manual_seed(0)
        expected = _parameter_gradient(stock, _energy(stock, x))
    stock.checkpoint(use_reentrant)
    x.requires_grad_()
    context = replace_ops()
    torch.manual_seed(0)
    if backward == "forward outside":
        loss = _energy(stock, x)
        with context:
            loss.backward()
    else:
        with context:
            loss = _energy(stock, x)
            if backward == "inside":
                loss.backward()
        if backward == "outside":
            loss.backward()
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in stock.model.parameters() if p.requires_grad]
    assert_equal(torch.cat([g.flatten() for g in grads]), expected, name)


@pytest.mark.parametrize("name", ["diffusers SD3", "transformers Llama"])
def test_stock_model_under_autocast(name: str) -> None:
    """Autocast leaves queries and keys in float32 behind their norm or rotation, and the values in bfloat16."""
    stock = STOCK[name]()
    x, ts = point(stock)
    with replace_ops():
        expected = MODES["backward through the jvp"](stock, x, ts)
        stock.model.float()
        with torch.autocast("cpu", torch.bfloat16):
            actual = MODES["backward through the jvp"](stock, x.float(), ts.float())
    assert_close(actual, expected, 0.1, name)
