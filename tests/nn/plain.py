"""The DiT written out in PyTorch's elementary ops, from the weights of a model: the truth of its tests."""

import math

import torch
from torch import Tensor

from fastflow.nn import DiT
from tests.compare import math_attention

Weights = dict[str, Tensor]


def plain_dit(model: DiT, w: Weights, x: Tensor, t: Tensor, y: Tensor, *, norm: str, rope: bool, mlp: str) -> Tensor:
    """The velocity of a model with these options, for weights w in place of its own; qk_norm if w has its weights."""
    p, (channels, height, width) = model.patch_size, model.input_shape
    rows, columns = height // p, width // p
    patches = x.reshape(-1, channels, rows, p, columns, p).permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)
    tokens = affine(w, "patch_embedding", patches) + model.positions
    omega = 1000.0 * torch.exp(-math.log(10_000.0) / 128 * torch.arange(128, dtype=t.dtype))
    waves = torch.cat(((t[:, None] * omega).cos(), (t[:, None] * omega).sin()), 1)
    time = affine(w, "time_embedding.linear2", silu(affine(w, "time_embedding.linear1", waves)))
    condition = silu(time + w["label_embedding.weight"][y])
    heads = model.blocks[0].attention.num_heads

    def normalized(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if norm == "layer" else x
        return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * (1 + scale) + shift

    def attend(name: str, x: Tensor) -> Tensor:
        qkv = affine(w, f"{name}.qkv", x).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [3, B, H, N, D]
        q, k = qkv[0], qkv[1]
        if f"{name}.q_norm.weight" in w:
            q, k = (
                z / (z.square().mean(-1, keepdim=True) + 1e-6).sqrt() * w[f"{name}.{kind}_norm.weight"]
                for z, kind in ((q, "q"), (k, "k"))
            )
        if rope:
            q, k = (rotated(z, rows, columns) for z in (q, k))
        out = math_attention(q, k, qkv[2])
        return affine(w, f"{name}.projection", out.transpose(1, 2).flatten(2))

    def feed_forward(name: str, x: Tensor) -> Tensor:
        inner = affine(w, f"{name}.0", x)
        if mlp == "swiglu":
            a, b = inner.chunk(2, -1)
            return affine(w, f"{name}.2", silu(a) * b)
        cubic = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
        return affine(w, f"{name}.2", inner / 2 * (1 + cubic.tanh()))

    for i in range(len(model.blocks)):
        name = f"blocks.{i}"
        b1, a1, g1, b2, a2, g2 = affine(w, f"{name}.modulation.1", condition)[:, None].chunk(6, -1)
        tokens = tokens + g1 * attend(f"{name}.attention", normalized(tokens, b1, a1))
        tokens = tokens + g2 * feed_forward(f"{name}.mlp", normalized(tokens, b2, a2))
    b, a = affine(w, "final_layer.modulation.1", condition)[:, None].chunk(2, -1)
    out = affine(w, "final_layer.linear", normalized(tokens, b, a))
    return out.reshape(-1, rows, columns, p, p, channels).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def affine(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].mT + w[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def rotated(x: Tensor, rows: int, columns: int) -> Tensor:
    """Rotate x ``[B, H, N, D]`` as complex numbers, whose imaginary parts are the second half of the channels."""
    quarter = x.shape[-1] // 4
    omega = 10_000.0 ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    row = torch.arange(rows).repeat_interleave(columns)
    column = torch.arange(columns).repeat(rows)
    angle = torch.cat((row[:, None] * omega, column[:, None] * omega), 1)  # [N, D / 2]
    cos, sin = angle.cos().float(), angle.sin().float()  # as the model rounds them
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)
