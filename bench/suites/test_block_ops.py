"""The ops of a Transformer block against PyTorch's own, at the shapes of DiT-S/2 on a CPU and of DiT-XL/2 on a GPU.

Modes, as of attention: forward alone, with its backward, with a tangent, and with the backward of both. All operands
but weights have tangents. The tangent of a layer norm is that of the norm written out where a gradient flows through
it, because that of ``F.layer_norm`` is silently wrong (pytorch#196700). On a GPU, PyTorch's ops are compiled too.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterable

import pytest
import torch

import fastflow as ff
from bench.harness import roofline
from bench.harness.block_ops import BLOCK_OPS, BlockProblem, Mode, Sizes
from bench.harness.case import Case, Entry, Way
from bench.harness.pytorch_ops import reference_of
from bench.suites.models import DEVICE
from bench.suites.test_attention import BACKWARD, CALL, FORWARD, JVP, TVM

CUDA = DEVICE.type == "cuda"
MODES: dict[str, Mode] = {FORWARD: "forward", BACKWARD: "backward", JVP: "jvp", TVM: "joint"}
OWN = "fastflow"


def sizes(cuda: bool) -> Sizes:
    return Sizes(32, 256, 1152, 16) if cuda else Sizes(4, 256, 384, 6)


def dtype_of(cuda: bool) -> torch.dtype:
    return torch.bfloat16 if cuda else torch.float32


def entry(name: str, mode: str, cuda: bool = CUDA) -> Entry:
    at = sizes(cuda)
    listed = mode == TVM
    return Entry(
        op="block op",
        mode=f"{name}, {mode}",
        shape=(at.B, at.N, at.D),
        dtype=dtype_of(cuda),
        label=f"{name}, forward + JVP + joint backward" if listed else "",
        baselines=("PyTorch",) if listed else (),
        reason=CALL if listed else "",
    )


def entries(cuda: bool) -> Iterable[Entry]:
    return (entry(name, mode, cuda) for name, mode in itertools.product(BLOCK_OPS, MODES))


def case(name: str, mode: str, at: Sizes | None = None, dtype: torch.dtype | None = None) -> Case:
    at, dtype = at or sizes(CUDA), dtype or dtype_of(CUDA)
    op, kind = BLOCK_OPS[name], MODES[mode]
    p = BlockProblem.draw(op, at, dtype, DEVICE)
    theirs = reference_of(op.function, through_tangent=kind == "joint")
    functions = {"PyTorch": theirs, "PyTorch compiled": torch.compile(theirs, dynamic=False)} if CUDA else {}
    functions |= {"PyTorch": theirs, OWN: getattr(ff, op.function)}
    return Case(
        dataclasses.replace(entry(name, mode), shape=(at.B, at.N, at.D), dtype=dtype),
        ways={way: Way(functools.partial(p.run, kind, f)) for way, f in functions.items()},
        truth=functools.partial(p.to(torch.float64).run, kind, theirs),
        budget=1e-5 if dtype == torch.float32 else 0.05,
        factor=math.inf if dtype == torch.float32 else 3.0,
        floor=floor(p, kind),
    )


def floor(p: BlockProblem, mode: Mode) -> roofline.Floor:
    """Return the floor of a mode: every tensor moved once by each pass, and a linear layer's GEMMs."""
    tangent = mode in ("jvp", "joint")
    moved = p.floor(backward=False, tangent=tangent)
    if mode in ("backward", "joint"):
        moved += p.floor(backward=True, tangent=tangent)
    gemms = {"forward": 1, "backward": 3, "jvp": 2, "joint": 6}[mode] if p.op.function == "linear" else 0
    return roofline.Floor(gemms * 2 * p.g[0].numel() * p.operands["x"].shape[-1] if gemms else 0, moved)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BLOCK_OPS)
def test_block_ops(record, name, mode):
    record(case(name, mode))
