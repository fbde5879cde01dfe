"""Derivatives by finite differences, torch.compile, the custom ops, the kernels in the modes of differentiation."""

import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import fastflow as ff
from fastflow.ops.gate.norm_op import NORM_OP
from fastflow.ops.gate.op import OP
from tests.compare import DEVICE, assert_close, tensors
from tests.modes import MODES
from tests.ops.gate import test_gated_add, test_gated_add_layer_norm

SHAPES = ((2, 3, 4), (2, 1, 4), (2, 3, 4), (2, 1, 4), (2, 1, 4))
KERNEL_MODES = ["reverse_over_forward", "forward_over_reverse", "vmap_of_vjp"]


def draw(seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(s, dtype=torch.float64, generator=generator).to(DEVICE, dtype) for s in SHAPES]


def gated_norm(x: Tensor, gate: Tensor, y: Tensor, scale: Tensor, shift: Tensor, **options: Any) -> tuple[Tensor, ...]:
    return ff.gated_add_layer_norm(x, gate, y, scale=scale, shift=shift, **options)


OPS = {"gated_add": (ff.gated_add, 3), "gated_add_layer_norm": (gated_norm, 5)}


@pytest.mark.parametrize("name", OPS)
def test_numerically(name: str) -> None:
    function, num = OPS[name]
    leaves = [z[:1, :2, :3].requires_grad_() for z in draw()[:num]]
    assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True)


@pytest.mark.parametrize("name", OPS)
def test_compiled_without_a_break(name: str) -> None:
    """A jvp with one tangent missing and the backward through it, inside vmap too."""
    torch._dynamo.reset()
    function, num = OPS[name]

    def loss(last: Tensor, x: list[Tensor], t: list[Tensor]) -> Tensor:
        outs, t_outs = jvp(lambda *x: function(*x, last), tuple(x), tuple(t))
        return sum((a * b + b.square()).sum() for a, b in zip(tensors(outs), tensors(t_outs)))

    *x, last = (z.requires_grad_() for z in draw()[:num])
    t = [z.requires_grad_() for z in draw(1)[: num - 1]]
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(*(torch.autograd.grad(f(last, x, t), [last, *x, *t]) for f in (compiled, loss)), strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("name", OPS)
def test_compiled_under_vmap_and_grad(name: str) -> None:
    torch._dynamo.reset()
    function, num = OPS[name]
    (first, *rest), ts = draw()[:num], torch.stack([draw(1)[0], draw(2)[0]])

    def many(ts: Tensor) -> Any:
        tangents = vmap(lambda t: jvp(lambda z: function(z, *rest), (first,), (t,))[1])(ts)
        return tangents, grad(lambda z: sum(y.square().sum() for y in tensors(function(z, *rest))))(first)

    compiled = torch.compile(many, fullgraph=True, backend="aot_eager")
    for a, b in zip(tensors(compiled(ts)), tensors(many(ts)), strict=True):
        assert_close(a, b, 1e-12)


@pytest.mark.parametrize("step", ["forward", "backward", "dual_forward", "dual_backward"])
@pytest.mark.parametrize("name", OPS)
def test_custom_ops_are_well_formed(name: str, step: str) -> None:
    op, (_, num) = {"gated_add": OP, "gated_add_layer_norm": NORM_OP}[name], OPS[name]
    options = ("aten",) if num == 3 else (1e-6, True, True, "float64", "aten")
    x, t = draw()[:num], [z[None] for z in draw(1)[:num]]
    x[0] = x[0].mT.contiguous().mT
    results, dual = op.forward.op(*x, *options), op.dual_forward.op(*x, *t, *options)
    results, dual = ([*tensors(z)] for z in (results, dual))
    outputs, state = (results[:1], []) if num == 3 else (results[:2], results[2:])
    t_outputs, t_state = (dual[1:2], []) if num == 3 else (dual[2:4], dual[6:])
    kept, t_kept = ([None], [None]) if num == 3 else ([outputs[0], None], [t_outputs[0], None])
    wants = (True,) * num
    args = {
        "forward": (*x, *options),
        "backward": (*outputs, *x, *kept, *state, *options, *wants),
        "dual_forward": (*x, *t, *options),
        "dual_backward": (
            *outputs, *t_outputs, *x, *t, *kept, *t_kept, *state, *t_state, *options, *wants, *wants,
        ),
    }  # fmt: skip
    torch.library.opcheck(getattr(op, step).op, args[step])


@pytest.mark.slow
@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_mode_of_the_kernels(mode: str) -> None:
    pytest.importorskip("triton")
    for module, f in ((test_gated_add, ff.gated_add), (test_gated_add_layer_norm, test_gated_add_layer_norm.fused)):
        single, double = module.problem(dtype=torch.float32), module.problem()
        got = MODES[mode](functools.partial(f, backend="triton"), single)
        for a, b in zip(tensors(got), tensors(MODES[mode](module.spelled_out, double)), strict=True):
            assert_close(a, b, 1e-5)
