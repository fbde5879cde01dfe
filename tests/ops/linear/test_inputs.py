"""Shapes, strides, dtypes and bad input of the linear layer, and how it compiles."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vmap

import fastflow as ff
from fastflow.ops.linear.api import twice_differentiable_linear
from fastflow.ops.linear.op import OP
from tests.compare import assert_close

SHAPES = [(4, 3), (2, 3, 4), (4,), (1, 4), (0, 4), (2, 0, 4), (3, 0), (63, 100), (2, 2, 2, 1), (7, 1000)]


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def joint(function: Any, *operands: Tensor) -> list[Tensor]:
    """Primal, tangent and the gradients of both."""
    leaves = [y.detach().requires_grad_() for y in (*operands, *(y.cos() for y in operands))]
    out, t_out = jvp(function, tuple(leaves[: len(operands)]), tuple(leaves[len(operands) :]))
    return [out, t_out, *torch.autograd.grad(out.square().sum() + t_out.square().sum(), leaves)]


@pytest.mark.parametrize("num_out", [5, 1, 0, 63])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(shape: tuple[int, ...], num_out: int) -> None:
    x, weight, bias = draw(*shape), draw(num_out, shape[-1]), draw(num_out)
    for a, e in zip(joint(ff.linear, x, weight, bias), joint(F.linear, x, weight, bias), strict=True):
        assert_close(a, e, 1e-12)


@pytest.mark.parametrize("rows", [1, 2, 8, 40])
def test_short_inputs_of_wide_weights_take_one_gemm(rows: int) -> None:
    x, weight, bias = draw(rows, 1024), draw(512, 1024), draw(512)
    for a, e in zip(joint(ff.linear, x, weight, bias), joint(F.linear, x, weight, bias), strict=True):
        assert_close(a, e, 1e-12)
    out, t_out = jvp(lambda x: ff.linear(x, weight, bias), (x,), (x,))
    assert out.untyped_storage().data_ptr() != t_out.untyped_storage().data_ptr()
    out.add_(1)  # each owns its memory


CHANGES = {
    "transposed": lambda y: y.mT.contiguous().mT,
    "expanded": lambda y: y[:1].expand_as(y),
    "sliced": lambda y: y.repeat_interleave(2, -1)[..., ::2],
}


@pytest.mark.parametrize("change", CHANGES)
def test_strides(change: str) -> None:
    x, weight, bias = draw(3, 4), draw(5, 4), draw(1)

    def changed(function: Any) -> Any:
        return lambda x, weight, bias: function(CHANGES[change](x), CHANGES[change](weight), bias.expand(5))

    for a, e in zip(joint(changed(ff.linear), x, weight, bias), joint(changed(F.linear), x, weight, bias), strict=True):
        assert_close(a, e, 1e-12)


def test_without_tangents_it_is_pytorchs() -> None:
    x, weight, bias = (draw(*shape).requires_grad_() for shape in ((2, 4), (5, 4), (5,)))
    assert type(ff.linear(x, weight, bias).grad_fn).__name__ == "AddmmBackward0"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    x, weight, bias = draw(6, 8, dtype=torch.float32), draw(4, 8, dtype=dtype), draw(4, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        actual, expected = joint(ff.linear, x, weight, bias), joint(F.linear, x, weight, bias)
        assert ff.linear(x.double(), weight.double(), bias.double()).dtype == torch.float64
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype
        assert_close(a, e, 4 * torch.finfo(dtype).eps)


X, W, BIAS = torch.ones(2, 4), torch.ones(3, 4), torch.ones(3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0, W), TypeError, "x must be a tensor, got float"),
        ((X, None), TypeError, "weight must be a tensor, got NoneType"),
        ((X.int(), W), TypeError, "x must have a floating point dtype, got torch.int32"),
        ((X, W, BIAS.double()), TypeError, "bias must have the dtype of x, torch.float32, got torch.float64"),
        ((X[0, 0], W), ValueError, r"x must be \[..., in\], got a scalar"),
        ((X, W.mT), ValueError, r"weight must be \[out, 4\], got shape \(4, 3\)"),
        ((X, W[0]), ValueError, r"weight must be \[out, 4\], got shape \(4,\)"),
        ((X, W, BIAS[:1]), ValueError, r"bias must be \[3\], got shape \(1,\)"),
    ],
)
@pytest.mark.parametrize("tangent", [True, False])
def test_bad_input(arguments: tuple[Any, ...], error: type[Exception], message: str, tangent: bool) -> None:
    def call(t: Tensor) -> Tensor:
        return ff.linear(*arguments) * t

    with pytest.raises(error, match=message):
        jvp(call, (torch.ones(()),), (torch.ones(()),)) if tangent else call(torch.ones(()))


def test_bad_device_and_backend() -> None:
    with pytest.raises(ValueError, match="weight must be on the device of x, cpu, got meta"):
        jvp(lambda x: ff.linear(x, W.to("meta")), (X,), (X,))
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'triton', 'reference', got 'mkl'"):
        ff.linear(X, W, backend="mkl")


def loss(function: Any, x: Tensor, weight: Tensor, bias: Tensor, t: Tensor) -> Tensor:
    out, t_out = jvp(lambda x: function(x, weight, bias), (x,), (t,))
    many = vmap(lambda t: jvp(lambda x: function(x, weight, bias), (x,), (t,))[1])(torch.stack([t, t.cos()]))
    return out.square().sum() + t_out.square().sum() + many.pow(3).sum()


def test_compiles_with_a_dynamic_batch() -> None:
    torch._dynamo.reset()
    weight, bias = draw(5, 4).requires_grad_(), draw(5).requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 7):
        x, t = draw(batch, 3, 4).requires_grad_(), draw(batch, 3, 4).cos()
        torch._dynamo.mark_dynamic(x, 0)
        torch._dynamo.mark_dynamic(t, 0)
        leaves = [x, weight, bias]
        with torch.compiler.set_stance("default" if batch == 2 else "fail_on_recompile"):
            actual = torch.autograd.grad(compiled(ff.linear, *leaves, t), leaves)
        expected = torch.autograd.grad(loss(ff.linear, *leaves, t), leaves)
        for a, e in zip(actual, expected, strict=True):
            assert_close(a, e, 1e-12)


@pytest.mark.parametrize("step", ["forward", "backward", "dual_forward", "dual_backward"])
def test_custom_ops_are_well_formed(step: str) -> None:
    x, weight, bias, tx, g = draw(1, 3, 4), draw(1, 5, 4), draw(1, 1, 5), draw(2, 1, 3, 4), draw(1, 3, 5)
    x, weight = x.mT.contiguous().mT, weight.mT.contiguous().mT
    h, everything = draw(2, 1, 3, 5), (True,) * 3
    args = {
        "forward": (x, weight, bias, "aten"),
        "backward": (g, x, weight, bias, None, "aten", *everything),
        "dual_forward": (x, weight, bias, tx, None, None, "aten"),
        "dual_backward": (g, h, x, weight, bias, tx, None, None, None, None, "aten", *everything, *everything),
    }
    torch.library.opcheck(getattr(OP, step).op._opoverload, args[step])
    assert twice_differentiable_linear(x, weight[0], None).shape == (1, 3, 5)
