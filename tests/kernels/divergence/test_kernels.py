"""Both kernels against the reference, and the reference against the definition."""

import pytest
import torch

from fastflow.kernels.divergence import reference
from fastflow.kernels.noise.domains import Domain
from fastflow.kernels.noise.reference import gaussian, words

pytest.importorskip("triton")

from fastflow.kernels.divergence import probes as probes_module
from fastflow.kernels.divergence import reduce as reduce_module

SHAPES = [
    (3, 5, 7),
    (2, 3, 2, 65),
    (4, 2, 128),
    (1, 1, 5000),
    (2, 3),
    (3, 2, 1),
    (3, 11, 127),
    (2, 2, 2048),
    (2, 2, 2049),
]
DISTRIBUTIONS = ["rademacher", "gaussian"]
STREAM = (3, 1 << 40)
both = pytest.mark.parametrize("distribution", DISTRIBUTIONS)


def randn(shape, device):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def drawn(shape, distribution, device, dtype=torch.float32, first=1, **scale):
    return probes_module.probes(shape, *STREAM, first, distribution, dtype, device, **scale)


def expected(shape, distribution, device, dtype=torch.float32, first=1):
    return reference.probes(shape, *STREAM, first, distribution).to(device, dtype)


def agree(actual, wanted, distribution):
    """Signs bit for bit, normals as closely as the generator's two implementations agree."""
    assert actual.dtype == wanted.dtype
    assert actual.is_contiguous()
    rtol = {torch.float32: 1e-6, torch.float16: 1e-3}[actual.dtype]
    torch.testing.assert_close(actual, wanted, rtol=0 if distribution == "rademacher" else rtol, atol=0)


@pytest.mark.slow
@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_probe_kernel_gives_the_references_numbers(shape, distribution, device):
    for first in (0, 1, 5):
        agree(
            drawn(shape, distribution, device, first=first),
            expected(shape, distribution, device, first=first),
            distribution,
        )


@both
def test_probe_kernel_rounds_once_to_half_precision(distribution, device):
    wanted = expected((3, 5, 7), distribution, device, torch.float16)
    agree(drawn((3, 5, 7), distribution, device, torch.float16), wanted, distribution)


@both
def test_whole_tiles_that_start_inside_a_group_are_complete(distribution, device):
    """6144 elements fill three tiles; from element 3 of the stream on, they reach into a fourth."""
    wanted = expected((2048, 3), distribution, device)
    agree(drawn((2048, 3), distribution, device), wanted, distribution)


@both
def test_probes_far_into_a_stream(distribution, device):
    """Element indices beyond 2^32: the counter's high word is in use."""
    first = (1 << 33) // 21 + 5
    agree(
        drawn((2, 3, 7), distribution, device, first=first),
        expected((2, 3, 7), distribution, device, first=first),
        distribution,
    )


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reduction_draws_the_probes_again(shape, distribution, device):
    products = randn(shape, device)
    dots = reduce_module.dots(products, *STREAM, 1, distribution, torch.float32)
    wanted = (products.double() * expected(shape, distribution, device).double()).reshape(*shape[:2], -1).sum(2)
    assert dots.dtype == torch.float32
    size = products.reshape(*shape[:2], -1).norm(dim=2).double()
    assert ((dots.double() - wanted).abs() <= 1e-6 * size + 1e-7).all()


@both
def test_reduction_of_half_precision_products_uses_the_rounded_probes(distribution, device):
    products = randn((3, 5, 777), device).half()
    dots = reduce_module.dots(products, *STREAM, 1, distribution, torch.float16)
    probes = expected((3, 5, 777), distribution, device, torch.float16)
    wanted = reference.dots(products, probes)
    one_ulp = 2e-3 if distribution == "gaussian" else 1e-4  # a normal beside a rounding boundary may fall either way
    torch.testing.assert_close(dots, wanted, rtol=1e-5, atol=one_ulp)


@both
def test_reduction_of_strided_products(distribution, device):
    products = randn((4, 6, 9), device).permute(1, 2, 0)[:, ::2]
    dots = reduce_module.dots(products, *STREAM, 1, distribution, torch.float32)
    wanted = reference.dots(products, expected(products.shape, distribution, device))
    torch.testing.assert_close(dots, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_scaled_probes_are_the_adjoint_of_the_reduction(shape, distribution, device):
    """⟨c, D p⟩ = ⟨Dᵀ c, p⟩ in float64 of the kernels' own numbers."""
    products, c = randn(shape, device), randn(shape[:2], device)
    scaled = drawn(shape, distribution, device, scale=c, out_dtype=torch.float32)
    dots = reduce_module.dots(products, *STREAM, 1, distribution, torch.float32)
    left, right = (c.double() * dots.double()).sum(), (scaled.double() * products.double()).sum()
    assert (left - right).abs() <= 1e-6 * c.double().norm() * products.double().norm()
    wanted = reference.scaled(expected(shape, distribution, device), c)
    torch.testing.assert_close(scaled, wanted, rtol=2e-6, atol=0)


@both
def test_chunks_of_a_stream_are_the_stream(distribution, device):
    whole = expected((7, 3, 5), distribution, device, first=0)
    for start, stop in ((0, 3), (3, 4), (4, 7)):
        part = expected((stop - start, 3, 5), distribution, device, first=start)
        assert torch.equal(part, whole[start:stop])
        agree(drawn((stop - start, 3, 5), distribution, device, first=start), whole[start:stop], distribution)


def test_signs_are_the_bits_of_the_generators_words():
    e = torch.arange(500)
    word = torch.from_numpy(words(0, 16, *STREAM, Domain.SIGNS).astype("int64"))
    bits = word[e // 32] >> e % 32 & 1
    assert torch.equal(reference.rademacher(500, *STREAM), 1.0 - 2.0 * bits)
    assert torch.equal(reference.rademacher(77, *STREAM, start=301), (1.0 - 2.0 * bits)[301:378])


def test_normals_are_those_of_their_own_domain():
    shape = (3, 4, 5)
    expected = gaussian(60, 1, 2, domain=Domain.NORMAL_PROBES).view(shape)
    assert torch.equal(reference.probes(shape, 1, 2, 0, "gaussian"), expected)
    assert not torch.equal(reference.probes(shape, 1, 2, 0, "gaussian"), gaussian(60, 1, 2).view(shape))


def test_signs_are_fair_and_independent():
    signs = reference.rademacher(1 << 20, 2026, 1).double()
    bound = 4 / signs.numel() ** 0.5
    assert signs.mean().abs() < bound
    for lag in (1, 2, 31, 32, 33, 127, 128, 129):
        assert (signs[lag:] * signs[:-lag]).mean().abs() < 1.01 * bound


@both
def test_nothing_outside_the_output_is_written(distribution, device, monkeypatch):
    """The output starts as NaN between guard zones: all of the inside is written, none of the outside."""
    guard, buffers = 256, []

    def guarded(size, **options):
        buffer = torch.full((torch.Size(size).numel() + 2 * guard,), torch.nan, **options)
        buffers.append(buffer)
        return buffer[guard:-guard].view(size)

    monkeypatch.setattr(torch, "empty", guarded)
    out = drawn((3, 5, 77), distribution, device, scale=torch.ones(3, 5, device=device))
    monkeypatch.undo()
    assert out.isfinite().all()
    (buffer,) = buffers
    assert buffer[:guard].isnan().all()
    assert buffer[-guard:].isnan().all()


def test_the_same_input_gives_the_same_bits(device):
    products = randn((1, 2, 5000), device)
    first = reduce_module.dots(products, *STREAM, 0, "rademacher", torch.float32)
    for _ in range(3):
        assert torch.equal(first, reduce_module.dots(products, *STREAM, 0, "rademacher", torch.float32))


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 3), (2, 3, 0)], ids=str)
def test_empty(shape, device):
    assert drawn(shape, "rademacher", device).shape == shape
    dots = reduce_module.dots(torch.empty(shape, device=device), *STREAM, 0, "rademacher", torch.float32)
    assert torch.equal(dots, torch.zeros(shape[:2], device=device))
