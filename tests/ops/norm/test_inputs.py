"""Shapes, dtypes, autocast and devices of the norms, what they refuse, and torch.compile."""

import pytest
import torch
import torch.nn.functional as F
from torch.func import grad, jvp, vmap

import fastflow as ff
from tests.compare import DEVICE, assert_close, tensors


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def written_out(x, weight=None, bias=None, *, scale=None, shift=None, centred=True, eps=1e-6):
    x = x - x.mean(-1, keepdim=True) if centred else x
    y = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    y = y if scale is None else y * (1 + scale)
    return y if shift is None else y + shift


def everything(f, x, *others):
    """The output, its tangent, and the gradients of a loss of both."""
    leaves = [y.clone().requires_grad_() for y in (x, *others)]
    out, t_out = jvp(f, tuple(leaves), tuple(y.detach().sin() for y in leaves))
    plain = torch.autograd.grad(f(*leaves).square().sum(), leaves, materialize_grads=True)
    return [out, t_out, *plain, *torch.autograd.grad(out.sum() + t_out.square().sum(), leaves, materialize_grads=True)]


def check(f, g, *x, tolerance=1e-11):
    for a, b in zip(everything(f, *x), everything(g, *x), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


SHAPES = [(5,), (1, 5), (3, 1), (0, 5), (2, 0, 5), (2, 3, 0), (1, 1, 63), (2, 3, 4, 10), (2, 100), (2, 1000)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_any_shape(shape):
    weight, bias = draw(shape[-1], seed=1), draw(shape[-1], seed=2)
    check(ff.layer_norm, written_out, draw(*shape), weight, bias)
    check(lambda *y: ff.rms_norm(*y), lambda *y: written_out(*y, centred=False), draw(*shape), weight)
    check(lambda x, a: ff.layer_norm(x, scale=a), lambda x, a: written_out(x, scale=a), draw(*shape), weight)


@pytest.mark.parametrize("strided", [lambda x: x.mT, lambda x: x[:, ::2], lambda x: x[:1].expand(4, -1, -1)])
def test_any_strides(strided):
    check(lambda x: ff.layer_norm(strided(x)), lambda x: written_out(strided(x)), draw(2, 6, 6))
    check(lambda x: ff.rms_norm(strided(x)), lambda x: written_out(strided(x), centred=False), draw(2, 6, 6))


MODULATIONS = {
    "row": ((6,), (6,)),
    "sample": ((2, 6), (2, 6)),
    "sample, kept axes": ((2, 1, 6), (2, 6)),
    "token": ((2, 3, 6), (2, 3, 6)),
    "mixed": ((6,), (2, 3, 6)),
    "mixed the other way": ((2, 3, 6), (2, 1, 6)),
}


@pytest.mark.parametrize("shapes", MODULATIONS)
@pytest.mark.parametrize(
    "given", ["scale shift", "scale", "shift", "weight bias scale shift", "bias scale", "weight shift"]
)
def test_weights_and_modulation(shapes, given):
    """Each alone and together: the affine map first, then the modulation."""
    names = given.split()
    scale, shift = MODULATIONS[shapes]
    sizes = {"weight": (6,), "bias": (6,), "scale": scale, "shift": shift}
    others = [draw(*sizes[name], seed=i) for i, name in enumerate(names, 1)]

    def named(f, x, *ys):
        return f(x, **dict(zip(names, ys)))

    def spelled(x, *ys):
        ys = [y[:, None] if y.ndim == 2 else y for y in ys]
        return named(written_out, x, *ys)

    check(lambda *y: named(ff.layer_norm, *y), spelled, draw(2, 3, 6), *others)


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 1e-6), (torch.float64, 1e-14)],
    ids=str,
)
def test_plain_results_are_pytorchs(dtype, tolerance):
    x, weight, bias, g = (
        draw(*shape, seed=i, dtype=dtype) for i, shape in enumerate([(2, 5, 40), (40,), (40,), (2, 5, 40)])
    )
    for given in ((weight, bias), (weight, None), (None, bias), (None, None)):
        results = []
        for f in (ff.layer_norm, lambda *y, **o: F.layer_norm(y[0], (40,), *y[1:], **o)):
            leaves = [None if y is None else y.clone().requires_grad_() for y in (x, *given)]
            out = f(*leaves, eps=1e-5)
            results.append([out, *torch.autograd.grad(out, [y for y in leaves if y is not None], g)])
        for a, b in zip(*results, strict=True):
            assert a.dtype == b.dtype
            assert_close(a, b, tolerance)


def test_dtypes_are_promoted_as_by_pytorch():
    x, narrow = draw(2, 3, 8, dtype=torch.float32), draw(2, 8, dtype=torch.bfloat16)
    assert ff.layer_norm(x.bfloat16(), x[0, 0], x[0, 0]).dtype == torch.bfloat16  # weights, as F.layer_norm
    assert ff.rms_norm(x.bfloat16(), x[0, 0]).dtype == torch.bfloat16
    for a, b in ((x.bfloat16(), x[:, 0]), (x, narrow), (x.half(), narrow), (x, narrow.double())):
        out = ff.layer_norm(a, scale=b, shift=b)
        assert out.dtype == (a * b[:, None]).dtype
        exact = written_out(a.double(), scale=b.double()[:, None], shift=b.double()[:, None])
        assert_close(out, exact, 1e-2 if out.dtype == torch.bfloat16 else 1e-6)
    leaves = [y.clone().requires_grad_() for y in (x.bfloat16(), x[:, 0])]
    grads = torch.autograd.grad(ff.layer_norm(leaves[0], scale=leaves[1]).sum(), leaves)
    assert [y.dtype for y in grads] == [torch.bfloat16, torch.float32]


def test_autocast_changes_nothing_on_a_cpu_as_in_pytorch():
    x = draw(2, 3, 8, dtype=torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        assert ff.layer_norm(x).dtype == F.layer_norm(x, (8,)).dtype
        assert ff.layer_norm(x.float()).dtype == torch.float32
        leaf = x.clone().requires_grad_()
        assert torch.autograd.grad(ff.layer_norm(leaf).sum(), leaf)[0].dtype == torch.bfloat16


BAD = {
    "x must be a tensor, got list": (TypeError, {"x": [1.0]}),
    "x must have a floating point dtype, got torch.int64": (TypeError, {"x": torch.ones(3, dtype=torch.int64)}),
    r"x must be \[..., D\], got a scalar": (ValueError, {"x": torch.tensor(1.0)}),
    r"weight must be \[8\], got shape \(7,\)": (ValueError, {"weight": torch.ones(7)}),
    r"bias must be \[8\], got shape \(2, 3, 8\)": (ValueError, {"bias": torch.ones(2, 3, 8)}),
    r"scale must be \[8\], \[2, 8\], \[2, 1, 8\] or \[2, 3, 8\], got shape \(3, 8\)": (
        ValueError, {"scale": torch.ones(3, 8)},
    ),
    r"shift must be \[8\], \[2, 8\], .* got shape \(1,\)": (ValueError, {"shift": torch.ones(1)}),
    "shift must have a floating point dtype": (TypeError, {"shift": torch.ones(8, dtype=torch.bool)}),
    "weight must be on the device of x, cpu, got meta": (ValueError, {"weight": torch.ones(8, device="meta")}),
    "eps must be a number, got str": (TypeError, {"eps": "small"}),
    "backend must be one of": (ValueError, {"backend": "cuda"}),
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    error, change = BAD[message]
    with pytest.raises(error, match=message):
        ff.layer_norm(**{"x": torch.ones(2, 3, 8), **change})


def test_triton_says_why_it_cannot_run():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match="backend='triton' cannot serve norm: the kernels take float16, bfloat16"):
        ff.layer_norm(draw(2, 3), backend="triton")
    with pytest.raises(ValueError, match="cannot serve norm: the kernels take rows up to 16384, not 16385"):
        ff.layer_norm(torch.ones(1, 16385, device=DEVICE), backend="triton")


def loss(f, *leaves):
    out, t_out = jvp(f, leaves, tuple(y.detach().cos() for y in leaves))
    return (out + t_out.square()).sum()


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_compiles_in_one_graph(backend):
    """Dynamic lengths, the backward through the tangent, and a tangent that is missing."""
    if backend == "triton":
        pytest.importorskip("triton")
    torch._dynamo.reset()
    dtype, tolerance = (torch.float64, 1e-12) if backend == "auto" else (torch.float32, 1e-5)

    def f(x, scale, shift):
        return ff.layer_norm(x, scale=scale, shift=shift, backend=backend)

    def g(x, scale, shift):
        return written_out(x, scale=scale[:, None], shift=shift[:, None])

    compiled = torch.compile(lambda *y: loss(f, *y), fullgraph=True, backend="aot_eager", dynamic=True)
    for B, N in ((2, 3), (3, 5)):
        leaves = [draw(*shape, dtype=dtype).requires_grad_() for shape in ((B, N, 8), (B, 8), (B, 8))]
        exact = [y.detach().double().requires_grad_() for y in leaves]
        got, want = torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(g, *exact), exact)
        for a, b in zip(got, want, strict=True):
            assert_close(a, b, tolerance)


def test_compiled_with_inductor():
    torch._dynamo.reset()
    x, scale, weight = draw(2, 3, 8), draw(2, 8, seed=1), draw(8, seed=2)

    def f(norm, x):
        jvp_of_x = jvp(
            lambda y: norm(y, weight, scale=scale if norm is ff.layer_norm else scale[:, None]), (x,), (x.cos(),)
        )
        return sum(y.square().sum() for y in jvp_of_x) + norm(x).sum()

    x.requires_grad_()
    compiled = torch.compile(f, fullgraph=True)(ff.layer_norm, x)
    for a, b in zip(torch.autograd.grad(compiled, x), torch.autograd.grad(f(written_out, x), x), strict=True):
        assert_close(a, b, 1e-12)


def test_under_other_transforms_compiled():
    torch._dynamo.reset()
    x = draw(2, 3, 8)
    for call in (
        lambda f: vmap(grad(lambda y: f(y).pow(3).sum()))(x),
        lambda f: vmap(lambda t: jvp(f, (x,), (t,)))(x[None].cos()),
    ):
        got = torch.compile(lambda call=call: call(ff.layer_norm), fullgraph=True, backend="aot_eager")()
        for a, b in zip(tensors(got), tensors(call(written_out)), strict=True):
            assert_close(a, b, 1e-12)
