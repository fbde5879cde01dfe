"""Shapes, dtypes, bad input, autocast and torch.compile of the gated residual, alone and with the norm."""

import pytest
import torch
from torch.func import grad, jvp

import fastflow as ff
from tests.compare import DEVICE, assert_close, math_layer_norm, tensors


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def fused(x, gate, y, scale=None, shift=None, **options):
    return ff.gated_add_layer_norm(x, gate, y, scale=scale, shift=shift, **options)


def spelled_out(x, gate, y, scale=0, shift=0):
    total = x + gate * y
    return total, math_layer_norm(total, total.shape[-1:], eps=1e-6) * (1 + scale) + shift


GATES = {  # shapes of x, of the gate, and of the gate that broadcasts to x
    "layer": ((2, 3, 4), (4,), (4,)),
    "sample": ((2, 3, 4), (2, 4), (2, 1, 4)),
    "sample, one row": ((2, 3, 4), (2, 1, 4), (2, 1, 4)),
    "token": ((2, 3, 4), (2, 3, 4), (2, 3, 4)),
    "position": ((2, 3, 4), (1, 3, 4), (1, 3, 4)),
    "one of all": ((2, 3, 4), (1, 1, 4), (1, 1, 4)),
    "sample of an image": ((2, 3, 2, 4), (2, 1, 1, 4), (2, 1, 1, 4)),
    "sample of an image, flat": ((2, 3, 2, 4), (2, 4), (2, 1, 1, 4)),
    "layer of an image": ((2, 3, 2, 4), (4,), (4,)),
    "rows": ((3, 4), (3, 4), (3, 4)),
    "layer of rows": ((3, 4), (4,), (4,)),
    "one row": ((4,), (4,), (4,)),
    "one column": ((2, 3, 1), (2, 1), (2, 1, 1)),
    "no sample": ((0, 3, 4), (0, 4), (0, 1, 4)),
    "no token": ((2, 0, 4), (2, 4), (2, 1, 4)),
    "wide": ((1, 2, 1000), (1, 1000), (1, 1, 1000)),
}


@pytest.mark.parametrize("case", GATES)
def test_shapes(case):
    """Values, gradients and tangents of both ops."""
    shape, own, broadcast = GATES[case]
    x, gate, y, scale = draw(*shape), draw(*own, seed=1), draw(*shape, seed=2), draw(*own, seed=3)
    wide = [z.double() for z in (x, gate.view(broadcast), y, scale.view(broadcast))]

    def run(f, *operands):
        def loss(*operands):
            return sum(z.square().sum() for z in tensors(f(*operands)))

        return jvp(f, operands, tuple(z.cos() for z in operands)), grad(loss, tuple(range(len(operands))))(*operands)

    centred = shape[-1] > 1  # a row of one has no spread, so its gradients cancel
    for f, g, num in ((ff.gated_add, lambda *z: spelled_out(*z)[0], 3), (fused, spelled_out, 4 if centred else 0)):
        if num:
            for a, b in zip(tensors(run(f, *(x, gate, y, scale)[:num])), tensors(run(g, *wide[:num])), strict=True):
                assert_close(a, b.view(a.shape), 1e-5, case)


def test_strides():
    x, y, gate = draw(3, 4, 2).mT, draw(1, 2, 4).expand(3, 2, 4), draw(3, 3, 8)[:, 1, ::2]
    for a, b in zip(fused(x, gate, y, gate, gate), spelled_out(x, *[gate[:, None]], y, gate[:, None], gate[:, None])):
        assert_close(a, b, 1e-5)
    assert_close(ff.gated_add(x, gate, y), x + gate[:, None] * y, 1e-6)


def test_weight_and_bias_come_before_the_modulation():
    x, y, (gate, scale, shift), (w, b) = draw(2, 3, 4), draw(2, 3, 4, seed=1), draw(3, 2, 1, 4), draw(2, 4, seed=2)
    n = math_layer_norm(x + gate * y, (4,), eps=1e-6)
    for options, expected in {
        ("weight",): n * w,
        ("bias",): n + b,
        ("weight", "bias"): n * w + b,
        ("weight", "shift"): n * w + shift,
        ("bias", "scale"): (n + b) * (1 + scale),
        ("weight", "bias", "scale", "shift"): (n * w + b) * (1 + scale) + shift,
    }.items():
        given = {"weight": w, "bias": b, "scale": scale, "shift": shift}
        given = {name: given[name] for name in options}
        assert_close(ff.gated_add_layer_norm(x, gate, y, **given)[1], expected, 1e-5, str(options))


def test_weights_and_modulation_are_combined_in_float32():
    x, (w, scale) = draw(1, 8, 64), draw(2, 64, dtype=torch.bfloat16)
    options = {"weight": w, "scale": scale, "bias": w, "shift": scale}
    zero = torch.zeros_like(x)
    normed = ff.gated_add_layer_norm(x, zero, zero, **options)[1]
    w, scale = w.double(), scale.double()
    n = math_layer_norm(x.double(), (64,), eps=1e-6)
    assert_close(normed, (n * w + w) * (1 + scale) + scale, 1e-6)


@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")], ids=str)
def test_dtypes_are_promoted_as_pytorch_does(dtypes):
    stream, branch = (getattr(torch, name) for name in dtypes)
    x, gate, y = draw(2, 3, 4, dtype=stream), draw(2, 1, 4, dtype=branch), draw(2, 3, 4, dtype=branch)
    want = (x + gate * y).dtype
    for z in (x, gate, y):
        z.requires_grad_()
    (total, normed), (t_total, _) = jvp(fused, (x, gate, y), (x.cos(), gate.cos(), y.cos()))
    assert {z.dtype for z in (total, normed, t_total, ff.gated_add(x, gate, y))} == {want}
    grads = torch.autograd.grad((total, normed, t_total), (x, gate, y), (total, total, total))
    assert [g.dtype for g in grads] == [x.dtype, gate.dtype, y.dtype]
    assert ff.gated_add_layer_norm(x, gate, y, weight=draw(4))[1].dtype == want
    modulated = fused(x, gate, y, draw(2, 4))[1]
    assert modulated.dtype == torch.float32


def test_autocast_changes_nothing():
    x, gate, y = draw(2, 3, 4), draw(2, 1, 4, dtype=torch.bfloat16), draw(2, 3, 4, dtype=torch.bfloat16)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        results = ff.gated_add(x, gate, y), *fused(x, gate, y)
    for a, b in zip(results, (ff.gated_add(x, gate, y), *fused(x, gate, y)), strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b)


BAD = {
    "x is no tensor": ((1, 2), {}, TypeError, "x must be a tensor, got int"),
    "x is an integer": ((torch.ones(2, 3).long(), 2), {}, TypeError, "x must have a floating point dtype"),
    "x is a scalar": ((torch.ones(()), 2), {}, ValueError, r"x must be \[..., D\], got a scalar"),
    "y": ((draw(2, 3, 4), draw(2, 4), draw(2, 1, 4)), {}, ValueError, r"y must have the shape of x, \(2, 3, 4\), got"),
    "gate": (
        (draw(2, 3, 4), draw(3, 4)),
        {},
        ValueError,
        r"gate must be \[4\], \[2, 4\], \[2, 1, 4\] or \[2, 3, 4\], got shape \(3, 4\)",
    ),
    "gate of an image": (
        (draw(2, 3, 2, 4), draw(2, 3, 4)),
        {},
        ValueError,
        r"gate must be \[4\], \[2, 4\], \[2, 1, 1, 4\] or \[2, 3, 2, 4\], got",
    ),
    "gate of rows": ((draw(3, 4), draw(2, 4)), {}, ValueError, r"gate must be \[4\] or \[3, 4\], got shape \(2, 4\)"),
    "gate of a row": ((draw(4), draw(1)), {}, ValueError, r"gate must be \[4\], got shape \(1,\)"),
    "gate is no tensor": ((draw(2, 3, 4), 1.0), {}, TypeError, "gate must be a tensor, got float"),
    "gate elsewhere": ((draw(2, 4), draw(4).to("meta")), {}, ValueError, "gate must be on the device of x"),
    "backend": ((draw(2, 4), draw(4)), {"backend": "cuda"}, ValueError, "backend must be one of 'auto', 'triton'"),
    "triton": ((draw(2, 4).double(), draw(4)), {"backend": "triton"}, ValueError, "cannot serve gated_add.*float64"),
}
BAD_NORM = {
    "scale": ({"scale": draw(3, 4)}, ValueError, r"scale must be \[4\], \[2, 4\].* got shape \(3, 4\)"),
    "shift": ({"shift": draw(5)}, ValueError, r"shift must be \[4\], \[2, 4\].* got shape \(5,\)"),
    "weight": ({"weight": draw(2, 4)}, ValueError, r"weight must be \[4\], got shape \(2, 4\)"),
    "bias": ({"bias": 0.0}, TypeError, "bias must be a tensor, got float"),
    "eps": ({"eps": -1.0}, ValueError, "eps must be at least 0, got -1.0"),
    "eps is no number": ({"eps": "small"}, TypeError, "eps must be a number, got str"),
    "norm": ({"norm": "batch"}, ValueError, "norm must be one of 'layer', 'rms', got 'batch'"),
}


@pytest.mark.parametrize("op", [ff.gated_add, ff.gated_add_layer_norm])
@pytest.mark.parametrize("case", BAD)
def test_bad_input(op, case):
    operands, options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        op(*operands, *operands[: 3 - len(operands)], **options)


@pytest.mark.parametrize("case", BAD_NORM)
def test_bad_input_of_the_norm(case):
    options, error, message = BAD_NORM[case]
    with pytest.raises(error, match=message):
        ff.gated_add_layer_norm(draw(2, 3, 4), draw(2, 4), draw(2, 3, 4), **options)


def test_rows_too_wide_for_the_kernels():
    pytest.importorskip("triton")
    x = draw(1, 1, 16385)
    with pytest.raises(ValueError, match=r"cannot serve gated_add_layer_norm: the kernels take rows up to 16384"):
        fused(x, x, x, backend="triton")
    assert_close(ff.gated_add(x, x, x, backend="triton"), x + x * x, 1e-6)
