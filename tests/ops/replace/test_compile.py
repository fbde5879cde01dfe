"""Models compiled inside and outside of ``replace_ops``, and exported."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import layer_norm as layer_norm_by_name
from torch.nn.functional import multi_head_attention_forward as attention_by_name

from fastflow import replace_ops
from tests.compare import assert_close

Model = Callable[[Tensor], Tensor]
_GENERATOR = torch.Generator().manual_seed(0)
X, V, W, P = (
    torch.randn(*s, dtype=torch.float64, generator=_GENERATOR) for s in ((2, 5, 8), (2, 5, 8), (24, 8), (8, 8))
)
pytestmark = pytest.mark.slow  # torch.compile takes seconds


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def tangent_energy(model: Model) -> Model:
    return lambda x: jvp(model, (x,), (V,))[1].square().sum()


def gradient(energy: Model) -> Tensor:
    x = X.clone().requires_grad_()
    return torch.autograd.grad(energy(x), x)[0]


def compiled(energy: Model, **options: bool) -> Model:
    return torch.compile(energy, backend="aot_eager", fullgraph=True, **options)


def attend_by_name(x: Tensor) -> Tensor:
    options = {"training": False, "need_weights": False}
    return attention_by_name(x, x, x, 8, 2, W, None, None, None, False, 0.0, P, None, **options)[0]


MODELS: dict[str, Model] = {
    "norm": lambda x: F.layer_norm(x, (8,)),
    "norm by name": lambda x: layer_norm_by_name(x, (8,)),
    "attention": lambda x: F.scaled_dot_product_attention(x, x.sin(), x),
    "multi-head attention by name": attend_by_name,
    "encoder": nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True).double(),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "determinant": lambda x: (x @ x.mT).det(),
}


@pytest.mark.parametrize("name", MODELS)
def test_compiled_inside(name: str) -> None:
    with replace_ops():
        expected = gradient(tangent_energy(MODELS[name]))
        assert_close(gradient(compiled(tangent_energy(MODELS[name]))), expected, 1e-10)


def test_multi_head_attention_is_traced_into() -> None:
    graphs = []

    def keep(graph: torch.fx.GraphModule, _: object) -> torch.fx.GraphModule:
        graphs.append(graph.code)
        return graph

    with replace_ops():
        torch.compile(MODELS["encoder"], backend=keep, fullgraph=True)(X)
    assert "fastflow" in graphs[0]
    assert "multi_head_attention_forward" not in graphs[0]


def test_compiled_outside_and_called_on_both_sides() -> None:
    function = compiled(tangent_energy(MODELS["norm"]))
    stock = gradient(function)
    with replace_ops():
        inside = gradient(function)
        assert_close(inside, gradient(tangent_energy(MODELS["norm"])), 1e-10)
    assert_close(gradient(function), stock, 1e-10)
    replace_ops.install()
    try:
        assert_close(gradient(function), inside, 1e-10)
    finally:
        replace_ops.uninstall()
    assert torch.linalg.vector_norm(stock - inside) > 0.05 * torch.linalg.vector_norm(inside)


def test_decorated_and_dynamic() -> None:
    energy = tangent_energy(MODELS["attention"])
    with replace_ops():
        expected = gradient(energy)
        assert_close(gradient(compiled(energy, dynamic=True)), expected, 1e-10)
    torch._dynamo.reset()
    assert_close(gradient(torch.compile(replace_ops()(energy), backend="eager")), expected, 1e-10)


def test_exported() -> None:
    """A model exported outside is replaced when it runs inside; one can be exported inside."""
    model = MODELS["encoder"]
    module = torch.export.export(model, (X,)).module()
    with replace_ops():
        assert_close(gradient(tangent_energy(module)), gradient(tangent_energy(model)), 1e-10)
        exported = torch.export.export(model, (X,), dynamic_shapes=({1: torch.export.Dim("length", min=2)},))
    longer = torch.cat([X, V], 1)
    with sdpa_kernel(SDPBackend.MATH):
        assert_close(exported.module()(longer), model(longer), 1e-10)
