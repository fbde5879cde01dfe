"""The GEMMs of the linear layer: two for a jvp and four for the gradient through it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vjp, vmap
from torch.utils.flop_counter import FlopCounterMode

import fastflow as ff
from fastflow.kernels.linear import aten, reference

M, IN, OUT, K = 6, 8, 10, 3
GEMM = 2 * M * IN * OUT


def gemms(function: Callable[[], Any]) -> tuple[float, Any]:
    with FlopCounterMode(display=False) as counter:
        result = function()
    return counter.get_total_flops() / GEMM, result


def leaves() -> list[Tensor]:
    return [torch.randn(*shape, requires_grad=True) for shape in ((M, IN), (M, IN), (OUT, IN), (OUT,))]


@pytest.mark.parametrize(("linear", "expected"), [(ff.linear, (2, 4)), (F.linear, (3, 5))])
def test_jvp_and_the_gradient_through_it(linear: Callable[..., Tensor], expected: tuple[int, int]) -> None:
    """A failure of PyTorch's counts means that it multiplies by fewer zeros than it did."""
    x, t, weight, bias = leaves()
    forward, (out, t_out) = gemms(lambda: jvp(lambda x: linear(x, weight, bias), (x,), (t,)))
    backward, _ = gemms(lambda: (out.sum() + t_out.sum()).backward())
    assert (forward, backward) == expected


def test_what_nobody_wants_is_not_multiplied() -> None:
    x, t, weight, bias = leaves()
    _, (_, t_out) = gemms(lambda: jvp(lambda x: ff.linear(x, weight.detach(), bias), (x.detach(),), (t,)))
    assert gemms(lambda: t_out.sum().backward())[0] == 1  # the tangent's gradient
    _, (out, _) = gemms(lambda: jvp(lambda x: ff.linear(x, weight, bias), (x,), (t,)))
    assert gemms(lambda: out.sum().backward())[0] == 2  # no cotangent of the tangent: a plain backward


def test_many_tangents_and_cotangents() -> None:
    x, _, weight, bias = leaves()
    ts, gs = torch.randn(K, M, IN), torch.randn(K, M, OUT)
    assert gemms(lambda: vmap(lambda t: jvp(lambda x: ff.linear(x, weight, bias), (x,), (t,))[1])(ts))[0] == 1 + K
    weight.requires_grad_(False)
    _, (_, pull) = gemms(lambda: vjp(lambda x: ff.linear(x, weight, bias), x))
    assert gemms(lambda: vmap(pull)(gs))[0] == K


OPERANDS = {
    "x": (True, False, False),
    "weight": (False, True, False),
    "x and bias": (True, False, True),
    "everything": (True, True, True),
}


@pytest.mark.parametrize("tangents", OPERANDS)
@pytest.mark.parametrize("wants", OPERANDS)
@pytest.mark.parametrize("has_g", [True, False])
def test_the_formula_counts_what_runs(tangents: str, wants: str, has_g: bool) -> None:
    """The custom op's formula against the GEMMs of the implementation, which the counter sees one by one."""
    from fastflow.ops._calls import DualBackward, DualForward
    from fastflow.ops._twice_differentiable import NoState, Out
    from fastflow.ops.linear.op import OP, Constants, Options, Primals

    x = Primals(torch.randn(1, M, IN), torch.randn(1, OUT, IN), torch.randn(1, 1, OUT))
    ts = Primals(*(torch.randn(K, *y.shape) if has else None for y, has in zip(x, OPERANDS[tangents])))
    g, h = torch.randn(1, M, OUT) if has_g else None, torch.randn(K, 1, M, OUT)
    flags = Primals(*OPERANDS[wants])
    options, constants = Options("aten"), Constants()

    def shapes(group: Any) -> Any:
        return type(group)(*(None if y is None else tuple(y.shape) for y in group))

    dual = DualForward(shapes(x), shapes(ts), constants, options)
    assert gemms(lambda: aten.dual_forward(*x, *ts))[0] * GEMM == OP.functions.flops(dual)
    joint = DualBackward(
        shapes(Out(g)), shapes(Out(h)), shapes(x), shapes(ts), constants, Out(None), Out(None), NoState(), NoState(),
        options, flags, flags,
    )  # fmt: skip
    ran = gemms(lambda: aten.dual_backward(g, h, *x, *ts, flags, flags))[0] * GEMM
    assert ran == OP.functions.flops(joint)
    assert gemms(lambda: reference.dual_forward(*x, *ts))[0] * GEMM == OP.functions.flops(dual)
