"""Bytes that the gated residual and the next norm move as one op and as two, counted in the interpreter."""

import re
from pathlib import Path

import pytest
import torch
from torch.func import jvp

pytest.importorskip("triton")

import fastflow as ff
from bench.harness.traffic import counted
from fastflow.kernels.gate import reference
from tests.compare import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="counts in the interpreter")

B, N, D = 2, 64, 64
SHAPES = (B, N, D), (B, 1, D), (B, N, D), (B, 1, D), (B, 1, D)
TOKENS = 2 * B * N * D  # bytes of one [B, N, D] in float16
PASSES = ("forward", "backward", "joint forward", "joint backward")
README = Path(reference.__file__).with_name("README.md")


def separate(x, gate, y, scale, shift):
    total = ff.gated_add(x, gate, y, backend="triton")
    return total, ff.layer_norm(total, scale=scale, shift=shift, backend="triton")


def fused(x, gate, y, scale, shift):
    return ff.gated_add_layer_norm(x, gate, y, scale=scale, shift=shift, backend="triton")


def table() -> dict[str, tuple[int, int]]:
    """Return the tensors of each pass that the README counts, as two ops and as one."""
    rows = re.findall(r"^\| ([a-z ]+) \|[^|]*\| (\d+) \|[^|]*\| (\d+) \|$", README.read_text(), re.MULTILINE)
    return {name: (int(two), int(one)) for name, two, one in rows}


def moved(f) -> list[int]:
    """Return the bytes of each of PASSES; what autograd adds up is part of the backward."""
    x, t = ([torch.randn(s, dtype=torch.float16).requires_grad_() for s in SHAPES] for _ in range(2))
    cotangents = [torch.randn(B, N, D, dtype=torch.float16) for _ in range(4)]
    passes = []
    for joint in (False, True):
        with counted() as forward:
            outs = [y for pair in jvp(f, tuple(x), tuple(t)) for y in pair] if joint else f(*x)
        with counted() as backward:
            torch.autograd.grad(outs, [*x, *t] if joint else x, cotangents[: len(outs)])
        passes += [forward.touched, backward.touched]
    return passes


@pytest.mark.parametrize("f", [separate, fused])
def test_bytes_are_those_of_the_readme(f, monkeypatch):
    """Within what rows share, statistics and partial sums, of which a model's longer groups have less."""
    monkeypatch.setattr("fastflow.kernels.norm.config.PROGRAMS", 1)  # as many rows share a partial sum as in a model
    for name, bytes_ in zip(PASSES, moved(f), strict=True):
        want = table()[name][f is fused]
        assert want <= bytes_ / TOKENS <= 1.2 * want, name
