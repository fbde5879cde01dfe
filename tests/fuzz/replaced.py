"""Random blocks of PyTorch's own ops under ``replace_ops``."""

import torch
import torch.nn.functional as F
from torch import Tensor

import fastflow as ff
from tests.compare import math_attention, math_layer_norm

from .call import Call
from .draw import Draw


def draw_replaced(draw: Draw, backend: str) -> Call:
    dtype = draw.one([torch.float64, torch.float64, torch.float32])
    batch, length, heads = draw.integer(1, 2), draw.integer(1, 9), draw.one([1, 2])
    dim = draw.one([3, 4, 5])  # a norm over two elements is their sign: its derivatives are nothing but rounding
    width, is_causal = heads * dim, draw.chance(0.3)
    shapes = {"x": (batch, length, width), "W": (width, width), "gain": (width,), "bias": (width,)}
    given = ["x", "W", *(name for name in ("gain", "bias") if draw.chance(0.7))]
    x = [draw.normal(*shapes[name], dtype=dtype) for name in given]
    after = draw.chance(0.5)

    def block(tensors: tuple[Tensor, ...], layer_norm: object, attention: object) -> Tensor:
        named = dict(zip(given, tensors))
        x, W, gain, bias = (named.get(name) for name in shapes)
        h = layer_norm(F.linear(x, W), (width,), gain, bias)
        q = h.unflatten(-1, (heads, dim)).transpose(-3, -2)
        h = x + attention(q, q.roll(1, -1), q, is_causal=is_causal).transpose(-3, -2).flatten(-2)
        return layer_norm(h, (width,), gain, bias) if after else h

    def ours(*tensors: Tensor) -> Tensor:
        with ff.replace_ops(backend=backend):
            return block(tensors, F.layer_norm, F.scaled_dot_product_attention)

    name = f"block {given} {(batch, length, heads, dim)} {dtype} causal {is_causal} norm after {after}"
    return Call(name, ours, lambda *tensors: block(tensors, math_layer_norm, math_attention), x)
