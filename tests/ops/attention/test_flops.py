"""The counts of FlopCounterMode for attention: hand counts, and the matmuls that the blocked implementation runs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

import fastflow as ff
from fastflow.kernels.attention import blocks
from fastflow.ops.attention import attention, attention_jvp

ROOT = Path(__file__).parents[3]
B, HQ, HK, NQ, NK, D, DV = 2, 4, 2, 16, 40, 8, 6
KEYS, VALUES = 2 * B * HQ * NQ * NK * D, 2 * B * HQ * NQ * NK * DV  # of one matmul with columns of each width


def operands(*lead: int) -> list[Tensor]:
    shapes = (B, HQ, NQ, D), (B, HK, NK, D), (B, HK, NK, DV)
    return [torch.randn(*lead, *shape) for shape in shapes]


def counted(function: Any) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops(), result


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The operations of every matmul that the blocks run."""
    done: list[int] = []
    add = blocks.Sum.add

    def spy(self: Any, x: Tensor | None, y: Tensor | None, scale: float = 1.0) -> Any:
        if x is not None and y is not None:
            done.append(2 * x.shape[0] * x.shape[1] * x.shape[2] * y.shape[2])
        return add(self, x, y, scale)

    monkeypatch.setattr(blocks.Sum, "add", spy)
    return done


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("is_causal", [False, True])
def test_forward_and_backward_by_hand(is_causal: bool, device: str) -> None:
    """Two GEMMs, and five more: as PyTorch counts its own, causal or not."""
    x = [y.to(device).requires_grad_() for y in operands()]
    forward, out = counted(lambda: attention(*x, is_causal=is_causal, enable_gqa=True))
    assert forward == KEYS + VALUES
    assert counted(lambda: out.sum().backward())[0] == 3 * KEYS + 2 * VALUES


@pytest.mark.parametrize("num", [1, 3])
def test_jvp_and_backward_by_hand(num: int) -> None:
    """2 + 4 K GEMMs, then 5 + 10 K: S, G Vᵀ, dV, dQ, dK; per tangent also two of tS, dtS K, A, B, (P∘U)ᵀ H and more."""
    leaves = [y.requires_grad_() for y in (*operands(), *operands(num))]
    forward, (out, t_out) = counted(lambda: attention_jvp(*leaves, enable_gqa=True))
    assert forward == (1 + 2 * num) * (KEYS + VALUES)
    backward, _ = counted(lambda: (out.sum() + t_out.sum()).backward())
    assert backward == (3 + 6 * num) * KEYS + (2 + 4 * num) * VALUES


def test_a_missing_tangent_is_not_counted() -> None:
    q, k, v = operands()
    f = lambda v: attention(q, k, v, enable_gqa=True)  # noqa: E731
    assert counted(lambda: jvp(f, (v,), (v,)))[0] == KEYS + 2 * VALUES


@pytest.mark.parametrize("given", [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 1)])
@pytest.mark.parametrize("through", ["both", "output", "tangent"])
def test_every_matmul_that_runs_is_counted(run: list[int], given: tuple[int, ...], through: str) -> None:
    x = [y.requires_grad_() for y in operands()]
    t = [y.requires_grad_() if g else None for y, g in zip(operands(3), given)]
    forward, (out, t_out) = counted(lambda: attention_jvp(*x, *t, enable_gqa=True, backend="reference"))
    assert forward == sum(run)
    run.clear()
    losses = {"both": lambda: out.sum() + t_out.sum(), "output": out.sum, "tangent": t_out.sum}
    assert counted(lambda: losses[through]().backward())[0] == sum(run)


def test_many_cotangents_share_the_scores(run: list[int]) -> None:
    x = operands()
    out, pullback = vjp(lambda *x: attention(*x, enable_gqa=True, backend="reference"), *x)
    run.clear()
    assert counted(lambda: vmap(pullback)(torch.randn(5, *out.shape)))[0] == sum(run) == 11 * KEYS + 10 * VALUES


def test_ops_without_matmuls_count_nothing() -> None:
    x = torch.randn(4, 8)
    noise, t, path = ff.GaussianNoise(0), torch.rand(4), ff.paths.CondOT()

    def step() -> Tensor:
        xt = ff.interpolate(noise, x, t, path=path)
        return ff.flow_matching_loss(xt, noise, x, t, path=path) + ff.divergence(torch.sin, x, seed=0).divergence.sum()

    assert counted(step)[0] == 0


@pytest.mark.parametrize("order", ["fastflow, torch.utils.flop_counter", "torch.utils.flop_counter, fastflow"])
def test_the_formulas_are_registered_whoever_is_imported_first(order: str) -> None:
    program = f"""
import {order}, sys, torch
ops = torch.ops.fastflow
names = ("", "_backward", "_dual", "_dual_backward")
wanted = [getattr(ops, "attention" + name) for name in names] + [ops.affine, ops.gaussian, ops.probe_dots]
assert all(op in torch.utils.flop_counter.flop_registry for op in wanted)
"""
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
