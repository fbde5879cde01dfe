"""Count the bytes that the joint forward and backward of each block op move, beside the floor of its tensors."""

import os
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import torch

import fastflow as ff
from bench.compiler.report import source_hash
from bench.harness.block_ops import BLOCK_OPS, BlockProblem, Sizes
from bench.harness.traffic import Launch, Traffic, counted

PASSES = ("joint forward", "joint backward")
# 32 images of DiT-XL/2 at an eighth of its width: bytes per token and channel do not depend on the width, but partial
# sums depend on the number of tokens. Elementwise ops have none, so fewer tokens do.
TOKENS, ELEMENTWISE = Sizes(32, 256, 144, 2), Sizes(1, 256, 144, 2)
WIDE = Sizes(1, 32, 1152, 16)  # for what one program loads
_ELEMENTWISE = ("GELU", "SiLU", "SwiGLU", "RoPE")


def rows(names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield a row for each op and pass, counted in fp16, which stands for bf16."""
    for name in names:
        at = ELEMENTWISE if name in _ELEMENTWISE else TOKENS
        for pass_, p, traffic, floor in _passes(name, at):
            (_, _, wide, _) = next(x for x in _passes(name, WIDE) if x[0] == pass_)
            yield {
                "op": name,
                "pass": pass_,
                "family": family_of(p.op.function),
                "shape": [at.B, at.N, at.D],
                "tokens": at.B * at.N,
                "channels": p.g[0].numel() // (at.B * at.N),
                "launches": len(traffic.launches),
                "floor": floor,
                "moved": traffic.touched,
                "requested": traffic.requested,
                "reloads": round(traffic.repeats(floor // 16), 3),
                "kernels": [_kernel(*pair) for pair in _pairs(traffic, wide)],
                "others": sorted(x.name for x in traffic.launches if not x.triton),
                "source": source_hash(family_of(p.op.function)),
            }


def family_of(function: str) -> str:
    """Return the folder of ``kernels`` whose kernels an op launches."""
    return getattr(ff, function).__module__.split(".")[-2]


def _pairs(traffic: Traffic, wide: Traffic) -> Iterator[tuple[Launch, Launch]]:
    """Yield each Triton launch with the same one at the full width, or itself: few tokens need no sum of partials."""
    others = [x for x in wide.launches if x.triton]
    for launch in (x for x in traffic.launches if x.triton):
        same = next((x for x in others if x.name == launch.name), None)
        if same is not None:
            others.remove(same)
        yield launch, same or launch


def _kernel(launch: Launch, wide: Launch) -> dict[str, Any]:
    """Describe a kernel. burst: bytes from memory that a program loads between two stores at the full width."""
    loaded, stored = (sum(x.touched for x in xs) for xs in (launch.loads, launch.stores))
    from_memory = sum(x.touched for x in wide.loads) / max(1, sum(x.requested for x in wide.loads))
    return {"kernel": launch.name, "loaded": loaded, "stored": stored, "burst": round(wide.burst * from_memory)}


def _passes(name: str, at: Sizes) -> Iterator[tuple[str, BlockProblem, Traffic, int]]:
    p = BlockProblem.draw(BLOCK_OPS[name], at, torch.float16, torch.device("cpu"))
    function = getattr(ff, p.op.function)
    with mock.patch.dict(os.environ, {"FASTFLOW_BACKEND": "triton"}):
        with counted() as forward:
            outputs, wanted = p.recorded(function)
        with counted() as backward:
            torch.autograd.grad(outputs, wanted, (*p.g, *p.h))
    yield PASSES[0], p, forward, p.floor(backward=False)
    yield PASSES[1], p, backward, p.floor(backward=True)
