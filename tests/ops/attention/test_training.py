"""Attention where training puts it: under autocast, activation checkpointing, DDP and torch.compile."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

from fastflow.ops.attention import attention, attention_jvp
from tests.compare import assert_close, math_attention

ROOT = Path(__file__).parents[2]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Block(nn.Module):
    """One residual attention layer, ``[B, N, C]`` to itself."""

    def __init__(self, attend: Callable[..., Tensor], dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.attend = attend
        self.qkv, self.proj = (nn.Linear(8, out, dtype=dtype) for out in (24, 8))
        for i, p in enumerate(self.parameters()):
            p.data = draw(*p.shape, seed=i, dtype=dtype) / 3

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return x + self.proj(self.attend(q, k, v).transpose(1, 2).flatten(2))


def _tangent_loss(block: Callable[[Tensor], Tensor], x: Tensor, t: Tensor) -> Tensor:
    out, tangent = jvp(block, (x,), (t,))
    return out.square().sum() + tangent.square().sum()


def test_autocast_casts_what_torch_casts() -> None:
    x = [draw(1, 2, 9, 8, seed=i, dtype=torch.float32) for i in range(3)]
    double = [y.double() for y in x]
    with torch.autocast("cpu", torch.bfloat16):
        assert attention(*x).dtype == F.scaled_dot_product_attention(*x).dtype == torch.bfloat16
        assert attention(*x, backend="reference").dtype == torch.bfloat16
        assert attention(*double).dtype == F.scaled_dot_product_attention(*double).dtype == torch.float64


def test_autocast_keeps_float32_tangents() -> None:
    """Inside, too: nothing in the reference is cast down a second time."""
    x, t = ([draw(1, 2, 9, 8, seed=s + i, dtype=torch.float32) for i in range(3)] for s in (0, 5))
    with torch.autocast("cpu", torch.bfloat16):
        out, tangent = attention_jvp(*x, *t)
    assert (out.dtype, tangent.dtype) == (torch.bfloat16, torch.float32)
    rounded = tuple(y.bfloat16().double() for y in x)
    assert_close(tangent, jvp(math_attention, rounded, tuple(y.double() for y in t))[1], 1e-5)


def test_autocast_joint_backward() -> None:
    x, t = draw(2, 5, 8, dtype=torch.float32), draw(2, 5, 8, seed=1, dtype=torch.float32)

    def gradients(attend: Callable[..., Tensor], dtype: torch.dtype, enabled: bool) -> list[Tensor]:
        block = Block(attend, dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = _tangent_loss(block, x.to(dtype), t.to(dtype))
        loss.backward()
        return [p.grad for p in block.parameters()]

    truth = gradients(math_attention, torch.float64, enabled=False)
    for g, e in zip(gradients(attention, torch.float32, enabled=True), truth):
        assert g.dtype == torch.float32
        assert_close(g, e, 0.03)


def test_activation_checkpointing() -> None:
    """Around the jvp: recomputing a region inside torch.func.jvp fails in PyTorch for any function."""
    x, t = draw(2, 5, 8), draw(2, 5, 8, seed=1)

    def gradients(attend: Callable[..., Tensor], use: bool) -> list[Tensor]:
        block = Block(attend)
        loss = checkpoint(_tangent_loss, block, x, t, use_reentrant=False) if use else _tangent_loss(block, x, t)
        return list(torch.autograd.grad(loss, list(block.parameters())))

    for g, e in zip(gradients(attention, use=True), gradients(math_attention, use=False)):
        assert_close(g, e, 1e-10)


_DDP_WORKER = """
    import sys, torch, torch.distributed as dist
    from fastflow.ops.attention import attention
    from tests.compare import assert_close, math_attention
    from tests.ops.attention.test_training import Block, _tangent_loss, draw

    class Objective(torch.nn.Module):
        def __init__(self, attend):
            super().__init__()
            self.block = Block(attend)

        def forward(self, x, t):
            return _tangent_loss(self.block, x, t)

    rank, store = int(sys.argv[1]), sys.argv[2]
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    x, t = draw(2, 2, 5, 8), draw(2, 2, 5, 8, seed=1)
    model = torch.nn.parallel.DistributedDataParallel(Objective(attention))
    model(x[rank], t[rank]).backward()
    whole = Objective(math_attention)
    (0.5 * (whole(x[0], t[0]) + whole(x[1], t[1]))).backward()
    for p, e in zip(model.parameters(), whole.parameters()):
        assert_close(p.grad, e.grad, 1e-10)
    dist.destroy_process_group()
"""


@pytest.mark.slow
def test_inside_ddp_on_two_processes(tmp_path: Path) -> None:
    """The JVP is taken inside the wrapped forward; gradients are those of the whole batch."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", textwrap.dedent(_DDP_WORKER)]
    workers = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=120)
        assert worker.returncode == 0, errors.decode()


def _jvp_loss(f: Any, *x: Tensor) -> Tensor:
    out, tangent = jvp(f, x[:3], x[3:])
    return out.square().sum() + tangent.square().sum()


def _vmap_jvp_loss(f: Any, *x: Tensor) -> Tensor:
    out, tangents = vmap(lambda *t: jvp(f, x[:3], t))(*x[3:])
    return out.square().sum() + tangents.square().sum()


def _partial_loss(f: Any, *x: Tensor) -> Tensor:
    return jvp(lambda v: f(*x[:2], v, is_causal=True), x[2:3], x[5:6])[1].square().sum()


def _grad_loss(f: Any, *x: Tensor) -> Tensor:
    return sum((g * t).sum() for g, t in zip(grad(lambda *y: f(*y).square().sum(), (0, 1, 2))(*x[:3]), x[3:]))


def _jvp_of_grad_loss(f: Any, *x: Tensor) -> Tensor:
    return jvp(grad(lambda *y: f(*y).square().sum()), x[:3], x[3:])[1].square().sum()


def _jvp_of_vmap_loss(f: Any, *x: Tensor) -> Tensor:
    return jvp(vmap(f), x[3:], x[3:])[1].square().sum()


def _plain_loss(f: Any, *x: Tensor) -> Tensor:
    return f(*x[:3]).square().sum()


@pytest.fixture
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


# the last three leave the custom ops; what Inductor makes of plain PyTorch is not for this test
COMPILED = {
    "plain": (_plain_loss, None, "inductor"),
    "jvp": (_jvp_loss, None, "inductor"),
    "vmap of jvp": (_vmap_jvp_loss, 3, "inductor"),
    "partial, causal": (_partial_loss, None, "inductor"),
    "grad": (_grad_loss, None, "aot_eager"),
    "jvp of grad": (_jvp_of_grad_loss, None, "aot_eager"),
    "jvp of vmap": (_jvp_of_vmap_loss, 3, "aot_eager"),
}


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_fullgraph_and_backward(name: str) -> None:
    """The value and every gradient, through the tangent too."""
    loss, num_tangents, compiler = COMPILED[name]
    lead = () if num_tangents is None else (num_tangents,)
    shapes = [(2, 4, 5, 6)] * 3 + [(*lead, 2, 4, 5, 6)] * 3
    leaves = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    value = torch.compile(lambda *x: loss(attention, *x), fullgraph=True, backend=compiler)(*leaves)
    expected = loss(math_attention, *leaves)
    assert_close(value, expected, 1e-10)
    pairs = zip(
        torch.autograd.grad(value, leaves, allow_unused=True), torch.autograd.grad(expected, leaves, allow_unused=True)
    )
    for g, e in pairs:
        assert_close(torch.zeros(()) if g is None else g, torch.zeros(()) if e is None else e, 1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
@pytest.mark.parametrize("name", ["jvp", "vmap of jvp"])
def test_compiled_kernels_and_backward(name: str, device: torch.device) -> None:
    """By Inductor around the kernels, in float32."""
    pytest.importorskip("triton")
    loss, num_tangents, _ = COMPILED[name]
    lead = () if num_tangents is None else (num_tangents,)
    shapes = [(1, 2, 5, 6)] * 3 + [(*lead, 1, 2, 5, 6)] * 3

    def run(f: Any, attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        leaves = [draw(*shape, seed=i).to(device, dtype).requires_grad_() for i, shape in enumerate(shapes)]
        value = f(lambda *x: loss(attend, *x))(*leaves)
        return [value, *torch.autograd.grad(value, leaves)]

    compile_whole = partial(torch.compile, fullgraph=True)
    actual = run(compile_whole, partial(attention, backend="triton"), torch.float32)
    for a, e in zip(actual, run(lambda f: f, math_attention, torch.float64), strict=True):
        assert_close(a, e, 1e-5, name)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_attention_jvp_with_many_tangents() -> None:
    x = [draw(1, 4, 5, 6), draw(1, 2, 7, 6), draw(1, 2, 7, 4)]
    t = [draw(3, *y.shape, seed=5) for y in x]
    compiled = torch.compile(lambda *a: attention_jvp(*a, enable_gqa=True), fullgraph=True)
    for a, e in zip(compiled(*x, *t), attention_jvp(*x, *t, enable_gqa=True)):
        assert_close(a, e, 1e-10)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_compiled_forward_over_attention_jvp_raises() -> None:
    x = [draw(1, 2, 5, 6, seed=i) for i in range(3)]
    compiled = torch.compile(lambda *a: jvp(lambda *b: attention_jvp(*b, *x)[1], a, a), fullgraph=True)
    with pytest.raises(Exception, match="attention_jvp inside grad or jvp cannot be compiled"):
        compiled(*x)
