"""Models whose code is not ours, unmodified, under ``replace_sdpa``; and our own DiT, which needs no context."""

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as imported_by_name

from fastflow.nn import DiT
from fastflow.ops.attention import attention, replace_sdpa
from tests.compare import assert_close, tensors

os.environ.setdefault("HF_HUB_OFFLINE", "1")

Client = tuple[nn.Module, Callable[[Tensor], Tensor], tuple[int, ...]]


def _randomised(model: nn.Module) -> nn.Module:
    """Random weights everywhere: a zero-initialised gate would hide the attention behind it."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    for parameter in model.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return model


def diffusers_dit() -> Client:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    model = diffusers.DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=3, num_layers=2, sample_size=8, patch_size=2,
        num_embeds_ada_norm=10,
    )  # fmt: skip
    time, label = torch.tensor([3, 7]), torch.tensor([1, 4])
    return _randomised(model), lambda x: model(x, timestep=time, class_labels=label).sample, (2, 3, 8, 8)


def transformers_vit() -> Client:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=2,
        attn_implementation="sdpa",
    )  # fmt: skip
    model = transformers.ViTModel(config, add_pooling_layer=False)
    return _randomised(model), lambda x: model(x).last_hidden_state, (2, 3, 8, 8)


def fastflow_dit() -> Client:
    model = DiT(8, 2, 3, hidden_size=16, depth=2, num_heads=2, num_classes=10, qk_norm=True)
    t, y = torch.tensor([0.3, 0.7], dtype=torch.float64), torch.tensor([1, 4])
    return _randomised(model), lambda x: model(x, t, y), (2, 3, 8, 8)


CLIENTS = {"diffusers DiT": diffusers_dit, "transformers ViT": transformers_vit, "fastflow DiT": fastflow_dit}


def _parameter_gradient(model: nn.Module, loss: Tensor) -> Tensor:
    """All of it as one vector: a key's bias has no influence, so its own gradient is rounding error."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in grads])


MODES: dict[str, Callable[[nn.Module, Callable[[Tensor], Tensor], Tensor, Tensor], object]] = {
    "jvp": lambda model, f, x, ts: jvp(f, (x,), (ts[0],)),
    "backward through the jvp": lambda model, f, x, ts: _parameter_gradient(
        model, sum(y.square().sum() for y in jvp(f, (x,), (ts[0],)))
    ),
    "vmap over tangents": lambda model, f, x, ts: vmap(lambda t: jvp(f, (x,), (t,))[1])(ts),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CLIENTS)
def test_client(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, f, shape = CLIENTS[name]()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    ts = torch.randn(3, *shape, dtype=torch.float64, generator=generator)
    ours: AbstractContextManager[object] = nullcontext() if name == "fastflow DiT" else replace_sdpa()
    with ours:
        actual = tensors(MODES[mode](model, f, x, ts))
    monkeypatch.setattr("fastflow.nn.dit.attention", F.scaled_dot_product_attention)
    with sdpa_kernel(SDPBackend.MATH):
        expected = tensors(MODES[mode](model, f, x, ts))
    assert any(e.abs().max() > 1e-6 for e in expected)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-10, name)


@pytest.mark.parametrize("name", ["diffusers DiT", "transformers ViT"])
def test_stock_client_refuses(name: str) -> None:
    """What the context is for; when PyTorch learns to do this, the test will say so."""
    _, f, shape = CLIENTS[name]()
    x = torch.randn(shape, dtype=torch.float64)
    with pytest.raises(NotImplementedError, match=r"forward AD with .*flash_attention.* that does not support it"):
        jvp(f, (x,), (x,))


@pytest.mark.parametrize(
    "call", [lambda *x: F.scaled_dot_product_attention(*x), lambda *x: imported_by_name(*x, scale=0.5)]
)
def test_calls_are_caught_however_they_were_imported(call: Callable[..., Tensor]) -> None:
    x = tuple(torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    with replace_sdpa(backend="reference"):
        out, tangent = jvp(call, x, x)
    with sdpa_kernel(SDPBackend.MATH):
        expected = jvp(call, x, x)
    assert_close(out, expected[0], 1e-10)
    assert_close(tangent, expected[1], 1e-10)


def test_the_context_ends() -> None:
    x = tuple(torch.randn(1, 2, 5, 4, dtype=torch.float64) for _ in range(3))
    with replace_sdpa(), pytest.raises(NotImplementedError, match="dropout_p must be 0"):
        F.scaled_dot_product_attention(*x, dropout_p=0.5)
    F.scaled_dot_product_attention(*x, dropout_p=0.5)
    assert_close(F.scaled_dot_product_attention(*x), attention(*x), 1e-10)
