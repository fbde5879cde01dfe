"""Every option of the DiT against the model written out in PyTorch: values, derivatives, compilation, precision."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from fastflow.nn import DiT
from tests.compare import assert_close

from .plain import plain_dit
from .test_dit import batch, small_dit

OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "rms": {"norm": "rms"},
    "qk_norm": {"qk_norm": True},
    "rope": {"rope": True},
    "swiglu": {"mlp": "swiglu"},
    "all": {"norm": "rms", "qk_norm": True, "rope": True, "mlp": "swiglu"},
}
Field = Callable[[dict[str, Tensor], Tensor, Tensor], Tensor]
options = pytest.mark.parametrize("name", OPTIONS)


def build(name: str, **kwargs: object) -> DiT:
    return small_dit(input_size=(8, 12), **OPTIONS[name], **kwargs)


def fields(name: str, model: DiT, y: Tensor) -> tuple[Field, Field]:
    """The model and the one that is written out, as functions of weights, x and t."""
    settings = {"norm": "layer", "rope": False, "mlp": "gelu"}
    settings.update({k: v for k, v in OPTIONS[name].items() if k in settings})
    return (
        lambda w, x, t: functional_call(model, w, (x, t, y)),
        lambda w, x, t: plain_dit(model, w, x, t, y, **settings),
    )


@options
def test_gradient_through_the_tangent(name: str) -> None:
    """Of value and tangent, in all weights, the input, the time and the tangents."""
    model = build(name)
    x, t, y = batch(model)
    weights = {k: p.detach() for k, p in model.named_parameters()}
    tx, tt, w = torch.randn_like(x), torch.randn_like(t), torch.randn_like(x)

    def loss(field: Field, *args: Any) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        weights, x, t, tx, tt = args
        out, tangent = jvp(lambda x, t: field(weights, x, t), (x, t), (tx, tt))
        return (out * w).sum() + tangent.square().mean(), (out, tangent)

    args = (weights, x, t, tx, tt)
    (grads, outs), (true_grads, true_outs) = (
        grad(lambda *a, f=f: loss(f, *a), argnums=(0, 1, 2, 3, 4), has_aux=True)(*args) for f in fields(name, model, y)
    )
    for what, actual, expected in zip(("value", "tangent"), outs, true_outs):
        assert_close(actual, expected, 1e-12, what)
    for key in weights:
        assert_close(grads[0][key], true_grads[0][key], 1e-10, key)
    for what, actual, expected in zip(("x", "t", "tx", "tt"), grads[1:], true_grads[1:]):
        assert_close(actual, expected, 1e-10, what)


@options
def test_many_tangents(name: str) -> None:
    """K tangents of the input alone, and the gradient of a function of all of them."""
    model = build(name)
    x, t, y = batch(model)
    weights = {k: p.detach() for k, p in model.named_parameters()}
    tangents = torch.randn(4, *x.shape, dtype=x.dtype)

    def energy(field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        many = vmap(lambda v: jvp(lambda x: field(weights, x, t), (x,), (v,))[1])(tangents)
        return many.square().mean(), many

    (gradient, many), (true_gradient, true_many) = (
        grad(lambda x, f=f: energy(f, x), has_aux=True)(x) for f in fields(name, model, y)
    )
    assert_close(many, true_many, 1e-12, "tangents")
    assert_close(gradient, true_gradient, 1e-10, "gradient")


@options
def test_training_gradients_without_tangents(name: str) -> None:
    model = build(name)
    x, t, y = batch(model)
    _, plain = fields(name, model, y)
    expected = grad(lambda w: plain(w, x, t).square().mean())({k: p.detach() for k, p in model.named_parameters()})
    model(x, t, y).square().mean().backward()
    for key, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[key], 1e-11, key)


@options
def test_untrained_model_is_exactly_zero(name: str) -> None:
    model = build(name, randomised=False)
    x, t, y = batch(model)
    out, tangent = jvp(lambda x, t: model(x, t, y), (x, t), (torch.randn_like(x), torch.ones_like(t)))
    assert not out.any()
    assert not tangent.any()


@pytest.mark.parametrize("name", ["paper", "all"])
def test_bfloat16_autocast(name: str) -> None:
    model = build(name).float()
    x, t, y = (z.float() if z.is_floating_point() else z for z in batch(model))
    results = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            out, tangent = jvp(lambda x, t: model(x, t, y), (x, t), (torch.ones_like(x), torch.ones_like(t)))
        (out.float() * tangent.float()).mean().backward()
        results.append((out, tangent, torch.cat([p.grad.flatten() for p in model.parameters()])))
    assert results[1][0].dtype == torch.bfloat16
    for low, full, what in zip(results[1], results[0], ("value", "tangent", "gradient")):
        assert_close(low.float(), full, 0.05, what)


@pytest.mark.slow
def test_compiles_as_one_graph_with_its_tangent_for_every_batch() -> None:
    model = build("all", depth=1)
    graphs = 0

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        nonlocal graphs
        graphs += 1
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def run(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(lambda x, t: model(x, t, y), (x, t), (torch.ones_like(x), torch.ones_like(t)))

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True, backend=counting, dynamic=True)
    for num in (3, 5):
        results, args = [], batch(model, num)
        for f in (run, compiled):
            model.zero_grad()
            value, tangent = f(*args)
            (value * tangent).sum().backward()
            results.append((value, tangent, *(p.grad for p in model.parameters())))
        for expected, actual in zip(*results):
            assert_close(actual, expected, 1e-10)
    assert graphs == 1


def test_exact_numbers_of_parameters() -> None:
    """With 1,000 classes and the null class, counted by hand. The paper's last layer predicts Σ besides, 16 (D + 1)
    parameters more: 33, 130, 458 and 675 million in its table."""
    counts = {"S/2": 32_858_896, "B/2": 130_303_504, "L/2": 457_824_272, "XL/2": 674_816_272}
    for name, count in counts.items():
        with torch.device("meta"):
            paper, swiglu = (DiT.preset(name, num_classes=1000, mlp=mlp) for mlp in ("gelu", "swiglu"))
            same = DiT.preset(name, num_classes=1000, norm="rms", rope=True)
        sizes = [sum(p.numel() for p in model.parameters()) for model in (paper, swiglu, same)]
        assert sizes[0] == sizes[2] == count
        assert sizes[1] == pytest.approx(count, rel=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small_dit(norm="batch"), "norm must be one of 'layer', 'rms', got 'batch'"),
        (lambda: small_dit(mlp="relu"), "mlp must be one of 'gelu', 'swiglu', got 'relu'"),
        (lambda: small_dit(rope=True, hidden_size=24, num_heads=4), r"rope needs .* multiple of 4, got 24 / 4 = 6"),
    ],
)
def test_bad_options_are_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
