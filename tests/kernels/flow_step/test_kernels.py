"""The three kernels against the reference: shapes, dtypes, strides, drawn terms, memory they must not touch."""

from itertools import product

import pytest
import torch

from fastflow.kernels.flow_step import reference
from fastflow.kernels.noise.reference import gaussian

pytest.importorskip("triton")

from fastflow.kernels.flow_step import interpolate as interpolate_module
from fastflow.kernels.flow_step import loss as loss_module
from fastflow.kernels.flow_step._launch import Terms
from fastflow.kernels.flow_step._layout import layout

SHAPES = [(1, 1), (5,), (3, 2), (64, 2), (2, 3, 5, 7), (2, 2047), (2, 2048), (2, 2049), (1, 4099), (7, 1, 1), (4, 63)]
HALF_SHAPES = [(1, 1), (5,), (3, 2), (64, 2), (2, 3, 5, 7), (2, 2049), (4, 63)]  # a dtype changes no walk
DTYPES = [torch.float32, torch.float16]
EPSILON = {torch.float32: 2e-6, torch.float16: 2e-3}
STREAM = (5, 1 << 34, 3)  # seed, offset, first sample


def strided(x, kind):
    """The same values behind other strides."""
    if kind == "transposed":
        return x.mT.contiguous().mT if x.ndim > 1 else x
    if kind == "slice":
        wide = torch.full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan, dtype=x.dtype, device=x.device)
        wide[..., 1::2] = x
        return wide[..., 1::2]
    if kind == "expanded":
        return x[:1].expand_as(x)
    return x


def problem(shape, dtype, device, kind="contiguous", x0="given", z="absent", constant=False):
    """Terms for the kernels, their materialised form for the reference, and a prediction."""
    torch.manual_seed(0)
    x1, x0_given, z_given, pred = (strided(torch.randn(shape).to(device, dtype), kind) for _ in range(4))
    c = [torch.tensor(v) if constant else torch.randn(shape[0], device=device) for v in (1.0, -1.0, 0.3)]
    drawn = gaussian(x1.numel(), *STREAM[:2], STREAM[2] * x1[:1].numel()).view(shape).to(device)
    pick = {"given": (x0_given, ()), "drawn": (None, STREAM), "absent": (None, ())}
    (x0_, s0), (z_, sz) = pick[x0], pick[z] if z != "given" else (z_given, ())
    terms = Terms(x1, x0_, z_, *c, s0, sz)
    full = {"given": x0_given.float(), "drawn": drawn}
    zs = {"given": z_given.float(), "drawn": drawn, "absent": torch.zeros_like(drawn)}
    c = [v.item() if constant else v for v in c]
    return terms, reference.affine((x1.float(), full[x0], zs[z]), c), pred


def close(actual, expected, dtype):
    scale = expected.abs().max().clamp(min=1e-3)
    torch.testing.assert_close(actual.float() / scale, expected.float() / scale, rtol=0, atol=EPSILON[dtype])


def check(terms, expected, pred, dtype):
    close(interpolate_module.interpolate(terms, dtype), expected, dtype)
    error = (pred.float() - expected).reshape(pred.shape[0], -1)
    energy = loss_module.squared_error(pred, terms)
    torch.testing.assert_close(energy, error.square().sum(1), rtol=1e-5, atol=1e-6)
    grad = torch.randn(pred.shape[0], device=pred.device)
    backward = loss_module.squared_error_backward(grad, pred, terms)
    assert backward.dtype == pred.dtype
    assert backward.is_contiguous()
    close(backward, (2 * grad[:, None] * error).view(pred.shape), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype"), [*product(SHAPES, DTYPES[:1]), *product(HALF_SHAPES, DTYPES[1:])], ids=str)
def test_any_shape(shape, dtype, device):
    check(*problem(shape, dtype, device, x0="drawn"), dtype)
    check(*problem(shape, dtype, device, x0="given", z="drawn"), dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "dtype"), [*product([(3, 7), (2, 3, 5, 7)], DTYPES), ((2, 33, 63), torch.float32)], ids=str
)
@pytest.mark.parametrize("kind", ["transposed", "slice", "expanded"])
def test_any_strides(shape, kind, dtype, device):
    check(*problem(shape, dtype, device, kind, z="given"), dtype)
    check(*problem(shape, dtype, device, kind, x0="drawn"), dtype)


@pytest.mark.parametrize("z", ["absent", "given", "drawn"])
@pytest.mark.parametrize("x0", ["given", "drawn"])
@pytest.mark.parametrize("constant", [False, True])
def test_every_combination_of_terms(x0, z, constant, device):
    check(*problem((3, 45), torch.float32, device, x0=x0, z=z, constant=constant), torch.float32)


def test_mixed_memory_formats_share_one_walk(device):
    """A channels-last x1 beside a contiguous prediction, with noise that counts logical elements."""
    terms, expected, pred = problem((2, 6, 5, 4), torch.float32, device, x0="drawn")
    x1 = terms.x1.contiguous(memory_format=torch.channels_last)
    check(terms._replace(x1=x1), expected, pred, torch.float32)


def test_more_axes_than_the_kernel_walks_are_copied(device):
    shape = (2, 3, 2, 3, 2, 3, 2)
    terms, expected, pred = problem(shape, torch.float32, device, "slice", x0="drawn")
    permuted = terms.x1.permute(0, 6, 4, 2, 5, 3, 1).contiguous().permute(0, 6, 3, 5, 2, 4, 1)
    assert torch.equal(permuted, terms.x1)
    assert len(layout(permuted, pred).sizes) <= 4
    check(terms._replace(x1=permuted), expected, pred, torch.float32)


def test_layout_merges_axes_that_every_tensor_lets_merge():
    x = torch.empty(2, 3, 4, 5)
    assert layout(x, x).sizes == (60,)
    assert layout(x, x.transpose(1, 2).contiguous().transpose(1, 2)).sizes == (3, 4, 5)
    assert layout(x, x[:, :1].expand_as(x)).sizes == (3, 20)
    assert layout(x[..., None], None).strides == ((60, 1), None)


def test_a_view_of_more_than_2_31_elements(device):
    """Rows further apart than an int32 offset reaches; only the touched pages are ever committed."""
    if device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < 12 << 30:
        pytest.skip("needs 12 GiB of GPU memory")
    far = (1 << 31) + 24
    base = torch.empty(far + 8, dtype=torch.float16, device=device)
    x1 = base.as_strided((2, 8), (far, 1))
    inner = base.as_strided((1, 2, 8), (0, far, 1))
    x1.copy_(torch.arange(16.0).view(2, 8))
    coefficients = (torch.tensor(2.0), torch.tensor(0.0), torch.tensor(0.0))
    for x in (x1, inner):
        out = interpolate_module.interpolate(Terms(x, None, None, *coefficients), torch.float32)
        assert torch.equal(out.flatten(), 2 * torch.arange(16.0, device=device))
    assert layout(inner).wide
    assert not layout(x1).wide


@pytest.mark.parametrize("shape", [(3, 7), (2, 2049)], ids=str)
def test_nothing_outside_the_output_is_written(shape, device, monkeypatch):
    """Outputs start as NaN between guard zones: all of the inside is written, none of the outside."""
    terms, expected, pred = problem(shape, torch.float32, device, x0="drawn")
    guard, buffers, empty = 64, [], torch.empty

    def guarded(*size, **options):
        size = size[0] if isinstance(size[0], (tuple, torch.Size)) else size
        numel = torch.Size(size).numel()
        buffer = torch.full((numel + 2 * guard,), torch.nan, dtype=options["dtype"], device=options["device"])
        buffers.append(buffer)
        return buffer[guard : guard + numel].view(size)

    monkeypatch.setattr(torch, "empty", guarded)
    out = interpolate_module.interpolate(terms, torch.float32)
    backward = loss_module.squared_error_backward(torch.ones(shape[0], device=device), pred, terms)
    monkeypatch.setattr(torch, "empty", empty)
    assert len(buffers) == 2
    close(out, expected, torch.float32)
    assert backward.isfinite().all()
    for buffer in buffers:
        assert buffer[:guard].isnan().all()
        assert buffer[-guard:].isnan().all()


def test_the_same_input_gives_the_same_bits(device):
    terms, _, pred = problem((1, 5000), torch.float32, device, x0="drawn")
    first = loss_module.squared_error(pred, terms)
    assert all(torch.equal(first, loss_module.squared_error(pred, terms)) for _ in range(3))


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
def test_empty(shape, device):
    terms, _, pred = problem(shape, torch.float32, device)
    assert interpolate_module.interpolate(terms, torch.float32).shape == shape
    assert torch.equal(loss_module.squared_error(pred, terms), torch.zeros(shape[0], device=device))
    assert loss_module.squared_error_backward(torch.ones(shape[0], device=device), pred, terms).shape == shape
