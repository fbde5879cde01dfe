"""The generator: known answers, the kernel against the reference, and the distribution."""

import numpy as np
import pytest
import torch

from fastflow.kernels.noise import reference
from fastflow.kernels.noise.domains import Domain

triton = pytest.importorskip("triton")
tl = triton.language

from fastflow.kernels._common.philox import gaussian_groups, lanes, philox_words  # noqa: E402
from fastflow.kernels.noise.gaussian import gaussian  # noqa: E402

ALL_ONES = (1 << 64) - 1
KNOWN = [  # Random123's known answers for philox4x32-10: counter, key, words
    (0x00000000, 0, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    (0xFFFFFFFF, ALL_ONES, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
]


@triton.jit
def _words_kernel(out_ptr, first, seed: tl.int64, offset: tl.int64):
    group = first.to(tl.int64) + tl.arange(0, 16)
    w0, w1, w2, w3 = philox_words(group, seed, offset)
    element = tl.arange(0, 16)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(out_ptr + element, lanes(w0, w1, w2, w3).to(tl.int64))


@triton.jit
def _normals_kernel(out_ptr, first, seed: tl.int64, offset: tl.int64):
    z = gaussian_groups(first.to(tl.int64) + tl.arange(0, 16), seed, offset)
    element = tl.arange(0, 16)[:, None] * 4 + tl.arange(0, 4)[None, :]
    tl.store(out_ptr + element, z)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_reference_gives_random123s_known_answers(counter, key, expected):
    words = reference.philox_4x32(np.full((4, 1), counter, dtype=np.uint32), key)
    assert tuple(words[:, 0].tolist()) == expected


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_kernel_gives_random123s_known_answers(counter, key, expected, device):
    signed = -1 if key == ALL_ONES else key  # the kernel's words are the bits of a signed 64-bit number
    whole = -1 if counter == 0xFFFFFFFF else 0
    out = torch.empty(64, dtype=torch.int64, device=device)
    _words_kernel[(1,)](out, whole, signed, whole)
    assert tuple(out[:4].tolist()) == expected


@pytest.mark.parametrize("first", [2, (1 << 31) - 3, (1 << 32) - 3, 1 << 40])
@pytest.mark.parametrize(
    ("seed", "offset"), [(0, 0), (5, 7), (1 << 33, 3), (3, 1 << 33), ((1 << 63) - 1, (1 << 63) - 1)]
)
def test_kernel_and_reference_agree_far_into_the_stream(first, seed, offset, device):
    bits = torch.empty(64, dtype=torch.int64, device=device)
    _words_kernel[(1,)](bits, first, seed, offset)
    expected = reference.words(4 * first, 4 * first + 64, seed, offset, Domain.NOISE)
    assert bits.tolist() == expected.tolist()
    normals = torch.empty(64, device=device)
    _normals_kernel[(1,)](normals, first, seed, offset)
    torch.testing.assert_close(normals.cpu(), reference.gaussian(64, seed, offset, 4 * first), rtol=1e-6, atol=0)


@pytest.mark.parametrize("numel", [0, 1, 3, 4, 5, 2047, 2048, 2049, 100_003])
def test_materialised_normals_agree_to_1e_6_relative(numel, device):
    drawn = gaussian(numel, 11, 13, torch.float32, device)
    torch.testing.assert_close(drawn.cpu(), reference.gaussian(numel, 11, 13), rtol=1e-6, atol=0)


def test_extreme_words_give_finite_normals_of_full_range():
    words = np.array([[0, 0, 0xFFFFFFFF, 0], [1, 1 << 30, 0xFFFFFFFF, 0xFFFFFFFF]], dtype=np.uint64).T
    z = reference._box_muller(words)
    assert z.isfinite().all()
    assert z[0, 0].item() == pytest.approx(np.sqrt(2 * 32 * np.log(2)))  # the largest radius, 6.66
    assert z[0, 2:].abs().max().item() == 0.0


def test_a_draw_depends_on_seed_offset_and_index_alone():
    whole = reference.words(0, 1000, 3, 4, Domain.NOISE)
    assert np.array_equal(reference.words(333, 777, 3, 4, Domain.NOISE), whole[333:777])
    assert not np.array_equal(reference.words(0, 1000, 4, 4, Domain.NOISE), whole)
    assert not np.array_equal(reference.words(0, 1000, 3, 5, Domain.NOISE), whole)


def test_chunks_do_not_change_the_numbers(monkeypatch):
    expected = reference.gaussian(1001, 1, 2)
    monkeypatch.setattr(reference, "_CHUNK", 8)
    assert torch.equal(reference.gaussian(1001, 1, 2), expected)


@pytest.mark.parametrize("draw", ["gaussians", "uniforms"])
@pytest.mark.parametrize(("numel", "offset"), [(1, 0), (7, 5), (4096, (1 << 32) - 2), (33, (1 << 63) - 1)])
def test_offsets_drawn_together_are_those_drawn_alone(draw, numel, offset, monkeypatch):
    monkeypatch.setattr(reference, "_CHUNK", 1000)
    together = getattr(reference, draw)(numel, 3, offset, 3, 5, Domain.NOISE)
    alone = [getattr(reference, draw)(numel, 3, offset + i, 1, 5, Domain.NOISE)[0] for i in range(3)]
    assert torch.equal(together, torch.stack(alone))
    if draw == "gaussians":
        assert torch.equal(together[0], reference.gaussian(numel, 3, offset, 5))


def test_normals_are_normal():
    z = reference.gaussian(1 << 20, 2026, 1).double()
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((z**power).mean() - moment) < 4 * (variance / n) ** 0.5
    assert abs((z[0::2] * z[1::2]).mean()) < 4 * (2 / n) ** 0.5  # the two of a pair are independent
    assert abs((z[:-4] * z[4:]).mean()) < 4 / n**0.5
    grid = torch.linspace(-4, 4, 81, dtype=torch.float64)
    empirical = torch.searchsorted(z.sort().values, grid) / n
    assert (empirical - torch.special.ndtr(grid)).abs().max() < 1.95 / n**0.5  # Kolmogorov-Smirnov, p = 0.001


def test_uniforms_are_inside_the_open_interval_and_uniform():
    u = reference.uniforms(1 << 18, 7, 0, 1, 0, Domain.UNIFORM)[0]
    assert u.min() > 0
    assert u.max() < 1
    grid = torch.linspace(0, 1, 101)
    empirical = torch.searchsorted(u.sort().values, grid) / u.numel()
    assert (empirical - grid).abs().max() < 1.95 / u.numel() ** 0.5
