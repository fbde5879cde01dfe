"""PyTorch's own attention modules inside ``replace_ops``, in six modes, against math attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastflow import replace_ops
from tests.ops.replace.stock_models import Stock
from tests.ops.replace.test_stock_models import MODES, assert_equal, point, written_out

PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])
CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
FLOAT_MASK = torch.linspace(-1, 1, 25, dtype=torch.float64).reshape(5, 5)
MEMORY = torch.linspace(-1, 1, 2 * 4 * 8, dtype=torch.float64).sin().reshape(2, 4, 8)

Call = Callable[[nn.Module, Tensor], Tensor]


def _attention(call: dict[str, Any], **config: Any) -> tuple[nn.Module, Call]:
    first = config.pop("batch_first", True)

    def run(model: nn.Module, x: Tensor) -> Tensor:
        x = x if first else x.transpose(0, 1)
        return model(x, x, x, **call)[0]

    return nn.MultiheadAttention(8, 2, batch_first=first, **config), run


def _encoder(norm_first: bool, nested: bool, **call: Any) -> tuple[nn.Module, Call]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, nn.LayerNorm(8), enable_nested_tensor=nested)
    return model, lambda model, x: model(x, **call)


def _decoder(norm_first: bool) -> tuple[nn.Module, Call]:
    layer = nn.TransformerDecoderLayer(8, 2, 16, 0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerDecoder(layer, 1), lambda model, x: model(x, MEMORY, tgt_mask=CAUSAL)


MODULES: dict[str, tuple[nn.Module, Call]] = {
    "attention": _attention({}),
    "attention, no weights": _attention({"need_weights": False}),
    "attention, sequence first": _attention({"need_weights": False}, batch_first=False),
    "attention, padding": _attention({"need_weights": False, "key_padding_mask": PADDING}),
    "attention, padding and mask": _attention(
        {"need_weights": False, "key_padding_mask": PADDING.double() * -9, "attn_mask": FLOAT_MASK}
    ),
    "attention, causal": _attention({"need_weights": False, "attn_mask": CAUSAL, "is_causal": True}),
    "attention, bias": _attention({"need_weights": False}, add_bias_kv=True, add_zero_attn=True, bias=False),
    "encoder": _encoder(norm_first=False, nested=False),
    "encoder, norm first": _encoder(norm_first=True, nested=False),
    "encoder, padding": _encoder(norm_first=False, nested=True, src_key_padding_mask=PADDING),
    "encoder, causal": _encoder(norm_first=True, nested=False, mask=CAUSAL, is_causal=True),
    "decoder": _decoder(norm_first=False),
    "decoder, norm first": _decoder(norm_first=True),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODULES)
def test_torch_module(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, call = MODULES[name]
    stock = Stock(model, lambda x: call(model, x), (2, 5, 8), lambda _: None)
    with replace_ops():
        actual = MODES[mode](stock, *point(stock))
    with written_out(monkeypatch):
        expected = MODES[mode](stock, *point(stock))
    assert_equal(actual, expected, name)


@pytest.mark.parametrize("name", MODULES)
def test_frozen_module(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's inference path has no tangents; it is not taken inside."""
    model, call = MODULES[name]
    stock = Stock(model, lambda x: call(model, x), (2, 5, 8), lambda _: None)
    model.requires_grad_(False)
    try:
        with replace_ops(), torch.no_grad():
            actual = MODES["jvp"](stock, *point(stock))
        with written_out(monkeypatch):
            expected = MODES["jvp"](stock, *point(stock))
    finally:
        model.requires_grad_(True)
    assert_equal(actual, expected, name)


def test_autocast_with_wide_queries() -> None:
    """Queries and keys in float32 beside values in bfloat16, as after a norm of q and k, are cast as PyTorch does."""
    x = torch.randn(1, 2, 5, 8)

    def run() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return nn.functional.scaled_dot_product_attention(x, x.sin(), x.bfloat16())

    expected = run()
    with replace_ops():
        actual = run()
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, atol=2e-2, rtol=2e-2)
