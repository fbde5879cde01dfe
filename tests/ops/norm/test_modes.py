"""Every mode of differentiation against float64 norms spelled out in plain PyTorch."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import jvp

import fastflow as ff
from fastflow.ops.norm.op import OP, Options
from tests.compare import DEVICE, assert_close, tensors
from tests.modes import MODES, Problem

B, N, D, K = 2, 3, 5, 3
EPS = 1e-6


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def problem(*shapes, dtype=torch.float64):
    counter = iter(range(100))

    def draw_all(*lead):
        return [draw(*lead, *shape, seed=next(counter), dtype=dtype) for shape in shapes]

    w, ws = (draw(*lead, *shapes[0], seed=next(counter), dtype=dtype) for lead in ((), (K,)))
    return Problem(draw_all(), draw_all(), draw_all(K), draw_all(K), w, ws)


def layer_norm(x, scale=None, shift=None):
    n = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + EPS).sqrt()
    n = n if scale is None else n * (1 + scale)
    return n if shift is None else n + shift


def rms_norm(x, weight):
    return weight * x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()


CASES = {
    "layer norm": (ff.layer_norm, layer_norm, [(B, N, D)]),
    "modulated": (
        lambda x, a, b: ff.layer_norm(x, scale=a, shift=b), layer_norm, [(B, N, D), (B, 1, D), (B, 1, D)],
    ),
    "per token": (
        lambda x, a, b: ff.layer_norm(x, scale=a, shift=b), layer_norm, [(B, N, D), (B, N, D), (B, 1, D)],
    ),
    "weights": (
        lambda x, w, b: ff.layer_norm(x, w[0], b[0]),
        lambda x, w, b: layer_norm(x, w[0] - 1, b[0]),
        [(B, N, D), (1, D), (1, D)],
    ),
    "rms norm": (lambda x, w: ff.rms_norm(x, w[0]), lambda x, w: rms_norm(x, w[0]), [(B, N, D), (1, D)]),
}  # fmt: skip


def check(name, f, g, p, tolerance=1e-12, exact=None):
    actual, expected = tensors(MODES[name](f, p)), tensors(MODES[name](g, exact or p))
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, b, tolerance, f"{name}[{i}]")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODES)
def test_mode(name, case):
    f, g, shapes = CASES[case]
    check(name, f, g, problem(*shapes))


@pytest.mark.parametrize("positions", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("name", MODES)
def test_mode_of_some_inputs(name, positions):
    """Each input differentiated and mapped alone, and each tangent missing."""
    f, g, shapes = CASES["modulated"]
    p = problem(*shapes)
    for a, b in zip(*(tensors(MODES[name](*p.at(positions, h))) for h in (f, g)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", MODES)
def test_dtypes_are_pytorchs(name, dtype):
    f, g, shapes = CASES["modulated"]
    p = problem(*shapes, dtype=dtype)
    actual, expected = (tensors(MODES[name](h, p)) for h in (f, g))
    assert [(x.dtype, x.shape) for x in actual] == [(x.dtype, x.shape) for x in expected]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODES)
def test_mode_of_the_kernels(name):
    pytest.importorskip("triton")
    shapes = [(1, 2, 3), (1, 1, 3), (1, 1, 3)]
    p, exact = (problem(*shapes, dtype=dtype) for dtype in (torch.float32, torch.float64))
    check(name, lambda x, a, b: ff.layer_norm(x, scale=a, shift=b, backend="triton"), layer_norm, p, 1e-4, exact)


@pytest.mark.parametrize("case", CASES)
def test_numerically(case):
    f, _, shapes = CASES[case]
    leaves = [draw(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
    assert torch.autograd.gradcheck(f, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaves, check_fwd_over_rev=True)


def test_what_is_refused():
    x = draw(B, N, D)
    third = torch.func.grad(lambda x: torch.func.hessian(lambda y: ff.layer_norm(y).pow(3).sum())(x).sum())
    with pytest.raises(NotImplementedError, match=r"no third derivative.*use the norm written out"):
        third(x)
    with pytest.raises(NotImplementedError, match="forward-mode AD inside forward-mode AD"):
        jvp(lambda x: jvp(ff.rms_norm, (x,), (x,))[1], (x,), (x,))


def test_the_gradient_through_the_tangent_which_pytorch_gets_wrong():
    """pytorch#196700; if this fails because PyTorch's is right, the norms may use it."""
    grads = []
    for f in (lambda x: F.layer_norm(x, (D,), eps=EPS), ff.layer_norm, layer_norm):
        x = draw(B, N, D).requires_grad_()
        (dx,) = torch.autograd.grad(jvp(f, (x,), (draw(B, N, D, seed=1),))[1].square().sum(), x)
        grads.append(dx)
    wrong, ours, right = grads
    assert_close(ours, right, 1e-12)
    assert (wrong - right).norm() > 0.1 * right.norm()


@pytest.mark.parametrize("step", ["forward", "backward", "dual_forward", "dual_backward"])
def test_custom_ops_are_well_formed(step):
    x, scale, shift = (draw(*shape, seed=i) for i, shape in enumerate([(B, N, D), (B, 1, D), (B, N, D)]))
    x = x.mT.contiguous().mT
    t, options = [y[None].cos() for y in (x, scale, shift)], Options(EPS, True, True, "float64", "aten")
    out, *state = OP.forward.op(x, scale, shift, *options)
    *_, mean, rstd, t_mean, t_rstd = OP.dual_forward.op(x, scale, shift, *t, *options)
    args = {
        "forward": (x, scale, shift),
        "backward": (out.mT.contiguous().mT, x, scale, shift, None, *state),
        "dual_forward": (x, scale, shift, *t),
        "dual_backward": (None, t[0], x, scale, shift, *t, None, None, mean, rstd, t_mean, t_rstd),
    }[step]
    flags = {"backward": (True,) * 3, "dual_backward": (True, False, True) * 2}.get(step, ())
    torch.library.opcheck(getattr(OP, step).op, (*args, *options, *flags))
