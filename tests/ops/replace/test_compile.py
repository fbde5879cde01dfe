"""Models compiled inside and outside of ``replace_ops``, and exported."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext

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
from tests.ops.replace.stock_models import STOCK, Stock, fastflow_dit

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


CONSTANT, SCALE = X[0].cos(), W[0].requires_grad_()
ARITHMETIC: dict[str, Model] = {
    "numbers": lambda x: 2 / (1 + (3 - x / 2) ** 2 * 2) - 1,
    "sums": lambda x: (CONSTANT - (x + CONSTANT)) + torch.sub(x, SCALE) + torch.add(x, CONSTANT, alpha=2),
    "products": lambda x: (CONSTANT * x * SCALE) / (1 + CONSTANT**2) + CONSTANT / (1 + x * x),
    "matmuls": lambda x: (x @ P) + CONSTANT[:5, :5] @ x + torch.bmm(x, P.expand(len(x), 8, 8)),
    "joins": lambda x: (
        torch.cat([SCALE.expand(len(x), 1, -1), x, x], 1).sum(1) + torch.stack([x.mean(1), x[:, 0] * 0]).sum(0)
    ),
    "others": lambda x: (
        torch.where(CONSTANT > 0, x, SCALE) + torch.addcmul(CONSTANT, x, SCALE) + torch.maximum(x, CONSTANT)
    ),
    "linear": lambda x: (
        F.linear(F.linear(x, W, W[:, 0]), W.T, SCALE) + F.linear(CONSTANT.expand(len(x), 5, 8), P, SCALE)
    ),
}


def test_arithmetic_with_missing_tangents_and_a_dynamic_batch() -> None:
    """PyTorch ties each of these to its batch size, or reads a missing tangent at address 0."""

    def energy(x: Tensor, v: Tensor) -> Tensor:
        results = [jvp(function, (x,), (v,)) for function in ARITHMETIC.values()]
        return sum(y.square().sum() for pair in results for y in pair)

    with replace_ops():
        function = compiled(energy)
        for batch in (2, 3):
            x, v = (torch.cat([y, y.sin()])[:batch].contiguous().requires_grad_() for y in (X, V))
            torch._dynamo.mark_dynamic(x, 0)
            torch._dynamo.mark_dynamic(v, 0)
            with torch.compiler.set_stance("default" if batch == 2 else "fail_on_recompile"):
                actual = torch.autograd.grad(function(x, v), (x, v, SCALE))
            for a, e in zip(actual, torch.autograd.grad(energy(x, v), (x, v, SCALE)), strict=True):
                assert_close(a, e, 1e-10)


def _diffusers_dit(model: nn.Module, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    return model(x, timestep=t, class_labels=y).sample


WHOLE: dict[str, tuple[Callable[[], Stock], Callable[..., Tensor]]] = {
    "fastflow DiT": (fastflow_dit, lambda model, x, t, y: model(x, t / 10, y)),
    "diffusers DiT": (STOCK["diffusers DiT"], _diffusers_dit),
    "transformers ViT": (STOCK["transformers ViT"], lambda model, x, t, y: model(x).last_hidden_state),
}


@pytest.mark.parametrize(
    "name", ["transformers ViT", *(pytest.param(name, marks=pytest.mark.release) for name in WHOLE if "DiT" in name)]
)
def test_whole_model_compiles_with_a_dynamic_batch(name: str) -> None:
    """Inductor, in one graph for all batch sizes: jvp and the gradient of both results in every parameter."""
    make, call = WHOLE[name]
    stock = make()
    _keep_one_block(stock.model.float())
    parameters = [p for p in stock.model.parameters() if p.requires_grad]

    def energy(x: Tensor, v: Tensor, t: Tensor, y: Tensor) -> Tensor:
        out, tangent = jvp(lambda x: call(stock.model, x, t, y), (x,), (v,))
        return out.square().mean() + tangent.square().mean()

    with nullcontext() if name == "fastflow DiT" else replace_ops():
        function = torch.compile(energy, fullgraph=True)
        for batch in (2, 3):
            x, v = (torch.randn(batch, *stock.shape[1:], generator=_GENERATOR) for _ in range(2))
            inputs = x, v, torch.arange(3.0, 3 + batch), torch.arange(batch)
            for z in inputs:
                torch._dynamo.mark_dynamic(z, 0)
            with torch.compiler.set_stance("default" if batch == 2 else "fail_on_recompile"):
                actual = _gradient(function(*inputs), parameters)
            assert_close(actual, _gradient(energy(*inputs), parameters), 1e-5, name)


def _keep_one_block(model: nn.Module) -> None:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and name in ("blocks", "layer", "layers", "transformer_blocks"):
                setattr(module, name, child[:1])


def _gradient(loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([loss.detach().reshape(1), *(g.flatten() for g in grads)])
