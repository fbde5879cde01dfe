"""How fast a thing could be: its floor in FLOPs and bytes, and the roofs of this machine, measured in the same run.

A floor is a statement about shapes, not about a kernel: every function here says what it counts. A case whose tensors
stay in a cache can be faster than the roof of main memory lets it be: its share of the roof is then above 1. So can
float32 on a GPU, whose roof is that of exact products, where a kernel splits a product into TF32 ones.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bench._timing import interleaved, percentiles
from fastflow.nn import DiT


@dataclass(frozen=True)
class Floor:
    """What no implementation can avoid. flops: multiplications and additions of matrix products, or of arithmetic where
    there are none. bytes: inputs read once, outputs written once."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Roof:
    """Measured, not published: the fastest large copy and the fastest large matrix product of one dtype."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, floor: Floor) -> float:
        """The shortest time that the roofs leave."""
        return max(floor.flops / self.flops_per_second, floor.bytes / self.bytes_per_second)

    def binds(self, floor: Floor) -> str:
        """Which roof: ``"flops"`` or ``"bytes"``."""
        memory = floor.bytes / self.bytes_per_second
        return "flops" if floor.flops / self.flops_per_second > memory else "bytes"


@functools.cache
def roof(dtype: torch.dtype) -> Roof:
    """The roofs of the GPU, or without one of this CPU at its present number of threads."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    n, copied = (8192, 1 << 30) if cuda else (1024, 1 << 27)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source, target = torch.randn(2, copied // 4, device=device)
    ways = {"copy": lambda: target.copy_(source), "product": lambda: a @ b}
    best = {name: percentiles(s).p20 / 1e3 for name, s in interleaved(ways, rounds=20).items()}
    return Roof(flops_per_second=2 * n**3 / best["product"], bytes_per_second=2 * copied / best["copy"])


def flow_step(shape: Sequence[int], dtype: torch.dtype, drawn: bool) -> Floor:
    """x_t, then the loss and its gradient in the prediction.

    The model stands between the two, so x1 (and x0, if it is given) is read twice. In elements: x1 read, x_t written;
    prediction and x1 read, the gradient written: 5, and 2 for a given x0. Noise that is drawn, the target and the
    residual need no memory. Arithmetic: 3 for x_t, 1 for the target, 3 for the loss, 1 for the gradient.
    """
    numel = math.prod(shape)
    return Floor(flops=8 * numel, bytes=(5 if drawn else 7) * numel * dtype.itemsize)


def attention(
    shape: Sequence[int],
    dtype: torch.dtype,
    *,
    tangents: int = 0,
    backward: Literal["none", "plain", "joint"] = "none",
    is_causal: bool = False,
    mask_bytes: int = 0,
) -> Floor:
    """Self-attention on ``[B, H, N, D]`` with K tangents of query, key and value; matrix products of 2 N² D.

    * forward: S, P V: 2; a tangent: the two of tS, (P∘tS) V, P tV: 4 more, because S and P are shared.
    * plain backward, of O: S again, as FlashAttention counts it, dP, dQ, dK, dV: 5.
    * joint backward, of O and every tO: S, G Vᵀ, dS K, dSᵀ Q, Pᵀ G: 5; a tangent: the two of tS again, H Vᵀ, H tVᵀ,
      dtS tK, dtSᵀ tQ, (P∘U)ᵀ H, dtS K, dtSᵀ Q, Pᵀ H: 10. One tangent makes it three plain backwards.

    A causal mask leaves N (N + 1) / 2 of the N² scores. Bytes: query, key, value, the cotangents and the mask read,
    outputs and gradients written, nothing else, each once.
    """
    *batch, n, dim = shape
    pairs = n * (n + 1) / 2 if is_causal else n * n
    forward = 2 + 4 * tangents, 4 + 4 * tangents
    gemms, tensors = {"none": (0, 0), "plain": (5, 4), "joint": (5 + 10 * tangents, 4 + 4 * tangents)}[backward]
    return Floor(
        flops=(forward[0] + gemms) * 2 * math.prod(batch) * pairs * dim,
        bytes=(forward[1] + tensors) * math.prod(shape) * dtype.itemsize + mask_bytes,
    )


@dataclass(frozen=True)
class Network:
    """A forward pass of a DiT in FLOPs, by where they are spent, and the bytes of its parameters and input.

    Of hidden size D and depth L, on B samples of N patches with P numbers each, an MLP four times as wide and F
    sinusoids of the time: tokens ``2 B N (12 L D² + 2 P D)``, in the layers that every patch passes; condition
    ``2 B (F D + D² + (6 L + 2) D²)``, in the embedding of the time and the modulations; attention ``4 B L N² D``.
    first ``2 B (N P D + F D)`` is the part of them in the two layers that nothing trained comes before.
    """

    tokens: float
    condition: float
    attention: float
    first: float
    parameter_bytes: int
    input_bytes: int

    @property
    def forward(self) -> float:
        return self.tokens + self.condition + self.attention


def network(model: DiT, batch: int) -> Network:
    channels, height, width = model.input_shape
    n, p = height * width // model.patch_size**2, channels * model.patch_size**2
    d, depth, waves = model.patch_embedding.out_features, len(model.blocks), 2 * model.time_embedding.num_frequencies
    parameters = list(model.parameters())
    return Network(
        tokens=2 * batch * n * (12 * depth * d**2 + 2 * p * d),
        condition=2 * batch * d * (waves + d + (6 * depth + 2) * d),
        attention=4 * batch * depth * n**2 * d,
        first=2 * batch * d * (n * p + waves),
        parameter_bytes=sum(x.numel() * x.dtype.itemsize for x in parameters),
        input_bytes=batch * math.prod(model.input_shape) * parameters[0].dtype.itemsize,
    )


def divergence(net: Network, products: int) -> Floor:
    """One forward pass and so many Jacobian products, which cost the same in either direction.

    A product passes every layer on tokens once, and takes four products in attention where the forward takes two (JVP:
    tS twice, (P∘tS) V, P tV; VJP: dP, dV, dQ, dK). Read: parameters and x; written: velocity and divergence.
    """
    flops = net.forward + products * (net.tokens + 2 * net.attention)
    return Floor(flops, net.parameter_bytes + 2 * net.input_bytes)


def guidance(net: Network) -> Floor:
    """The gradient in x of a divergence by one product: the backward passes each layer on tokens twice, and takes
    twelve products in attention (those of the joint backward, with nothing computed again)."""
    once = divergence(net, 1)
    return Floor(once.flops + 2 * net.tokens + 6 * net.attention, once.bytes)


def training_step(net: Network) -> Floor:
    """Forward, and a backward that takes two products for every one of the forward (one in the first layers, whose
    input wants no gradient); parameters read and gradients written, then AdamW: parameters, gradients and both moments
    read, parameters and moments written."""
    return Floor(3 * net.forward - net.first, 9 * net.parameter_bytes + 2 * net.input_bytes)
