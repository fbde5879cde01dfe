"""Floors of operations in FLOPs and bytes, and the roofs of this machine, measured in the same run.

A floor depends on shapes only, not on a kernel; every function says what it counts. The share of the roof can exceed 1
if the tensors stay in a cache, and in float32 on a GPU, where the roof is that of exact GEMMs and kernels use TF32x3.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from bench.harness.timing import interleaved, percentiles
from fastflow.nn import DiT


@dataclass(frozen=True)
class Floor:
    """The work that no implementation can avoid.

    flops: multiplications and additions of GEMMs, or of elementwise arithmetic if there is no GEMM.
    bytes: inputs read once, outputs written once.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Roof:
    """Measured limits of the device: the fastest large copy, and the fastest large GEMM of one dtype."""

    flops_per_second: float
    bytes_per_second: float

    def seconds(self, floor: Floor) -> float:
        """Return the shortest time that the roofs allow."""
        return max(floor.flops / self.flops_per_second, floor.bytes / self.bytes_per_second)

    def binds(self, floor: Floor) -> str:
        """Return the roof that limits the floor, ``"flops"`` or ``"bytes"``."""
        memory = floor.bytes / self.bytes_per_second
        return "flops" if floor.flops / self.flops_per_second > memory else "bytes"


@functools.cache
def roof(dtype: torch.dtype) -> Roof:
    """Measure the roofs of the GPU, or of the CPU with its current number of threads if there is no GPU."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    n, copied = (8192, 1 << 30) if cuda else (1024, 1 << 27)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source, target = torch.randn(2, copied // 4, device=device)
    ways = {"copy": lambda: target.copy_(source), "gemm": lambda: a @ b}
    best = {name: percentiles(s).p20 / 1e3 for name, s in interleaved(ways, rounds=20).items()}
    return Roof(flops_per_second=2 * n**3 / best["gemm"], bytes_per_second=2 * copied / best["copy"])


def flow_step(shape: Sequence[int], dtype: torch.dtype, drawn: bool) -> Floor:
    """Floor of x_t, the loss and its gradient in the prediction.

    The model runs between the two, so x1 (and x0, if it is given) is read twice. In elements: x1 read, x_t written;
    prediction and x1 read, gradient written: 5, and 2 more for a given x0. Drawn noise, the target and the residual
    need no memory. Arithmetic: 3 for x_t, 1 for the target, 3 for the loss, 1 for the gradient.
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
    """Floor of self-attention on ``[B, H, N, D]`` with K tangents of query, key and value, in GEMMs of 2 N² D FLOPs.

    * Forward: 2 (S, P V), and 4 for each tangent (two for tS, then (P∘tS) V and P tV), which share S and P.
    * Backward ``"plain"``, of O alone: 5 (S again, as FlashAttention counts it, dP, dQ, dK, dV).
    * Backward ``"joint"``, of O and every tO: 5 (S, G Vᵀ, dS K, dSᵀ Q, Pᵀ G), and 10 for each tangent (two for tS
      again, H Vᵀ, H tVᵀ, dtS tK, dtSᵀ tQ, (P∘U)ᵀ H, dtS K, dtSᵀ Q, Pᵀ H).

    A causal mask leaves N (N + 1) / 2 of the N² scores. Bytes: query, key, value, cotangents and mask read once,
    outputs and gradients written once.
    """
    *batch, n, dim = shape
    pairs = n * (n + 1) / 2 if is_causal else n * n
    forward = 2 + 4 * tangents, 4 + 4 * tangents
    gemms, tensors = {"none": (0, 0), "plain": (5, 4), "joint": (5 + 10 * tangents, 4 + 4 * tangents)}[backward]
    return Floor(
        flops=(forward[0] + gemms) * 2 * math.prod(batch) * pairs * dim,
        bytes=(forward[1] + tensors) * math.prod(shape) * dtype.itemsize + mask_bytes,
    )


# GEMMs on a tile of each backward kernel of attention: kernels/attention/README.md
_BACKWARD_GEMMS = {"dkdv-plain": 4, "dkdv-primal": 10, "dkdv-joint": 12, "dq-plain": 3, "dq-primal": 8, "dq-joint": 9}


def kernel_gemms(direction: str, tangents: int) -> int:
    """Return the GEMMs of 2 Nq Nk D FLOPs in an attention kernel of ``config.DIRECTIONS``; 0 for other kernels.

    tangents: of ``"forward-many"``; the other directions determine theirs.
    """
    forward = {"forward-plain": 0, "forward": 1, "forward-many": tangents}
    return 2 + 4 * forward[direction] if direction in forward else _BACKWARD_GEMMS.get(direction, 0)


@dataclass(frozen=True)
class Network:
    """FLOPs of a DiT's forward pass by the kind of layer, and the bytes of its parameters and input.

    Hidden size D, depth L, B samples of N patches with P numbers each, an MLP of width 4 D, F sinusoids of the time:

    * tokens ``2 B N (12 L D² + 2 P D)``: layers that act on every patch.
    * condition ``2 B (F D + D² + (6 L + 2) D²)``: time embedding and modulations.
    * attention ``4 B L N² D``.
    * first ``2 B (N P D + F D)``: the part of the above in the first layers, whose inputs need no gradient.
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
    """Floor of one forward pass and ``products`` JVPs or VJPs, which cost the same.

    Each runs every layer on tokens once, and four GEMMs in attention where the forward has two (JVP: two for tS,
    (P∘tS) V, P tV; VJP: dP, dV, dQ, dK). Parameters and x are read, velocity and divergence written.
    """
    flops = net.forward + products * (net.tokens + 2 * net.attention)
    return Floor(flops, net.parameter_bytes + 2 * net.input_bytes)


def guidance(net: Network) -> Floor:
    """Floor of the gradient in x of a one-probe divergence.

    The backward runs each layer on tokens twice, and twelve GEMMs in attention: those of the joint backward without
    recomputation.
    """
    once = divergence(net, 1)
    return Floor(once.flops + 2 * net.tokens + 6 * net.attention, once.bytes)


def training_step(net: Network) -> Floor:
    """Floor of forward, backward and AdamW.

    The backward has two GEMMs for each one of the forward, but one in the first layers, whose input needs no gradient.
    Parameters are read and gradients written; AdamW reads parameters, gradients and both moments, and writes parameters
    and moments.
    """
    return Floor(3 * net.forward - net.first, 9 * net.parameter_bytes + 2 * net.input_bytes)
