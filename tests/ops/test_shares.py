"""Draws of different consumers, and shares of one draw in several processes, as users make them."""

import itertools

import pytest
import torch

import fastflow as ff
from fastflow.kernels.divergence import reference as divergence_reference
from fastflow.ops.random import permutation, uniform

N = 1 << 15
CONSUMERS = {
    "noise": lambda: ff.GaussianNoise(3, 4).materialize((N,)),
    "uniform": lambda: uniform((N,), 3, 4),
    "times": lambda: ff.paths.sample_times(ff.paths.CondOT(), N, seed=3, offset=4),
    "logit-normal times": lambda: ff.paths.sample_times(
        ff.paths.CondOT(), N, seed=3, offset=4, distribution="logit_normal"
    ),
    "permutation": lambda: permutation(N, 3, 4).float(),
    "signs": lambda: divergence_reference.probes((1, N, 1), 3, 4, 0, "rademacher").flatten(),
    "normal probes": lambda: divergence_reference.probes((1, N, 1), 3, 4, 0, "gaussian").flatten(),
}


def features(x):
    """Standardised functions of x; signs and words of one counter would be related in one of them."""
    cosine = torch.cos(2 * torch.pi * x) if x.min() > 0 and x.max() < 1 else torch.cos(x)
    columns = [x, x.abs(), x.square(), cosine]
    columns += [column.view(-1, 4)[:, [1, 0, 3, 2]].flatten() for column in columns]  # the other element of a pair
    return torch.stack([(c - c.mean()) / c.std() for c in columns if c.std() > 0])


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(CONSUMERS, 2)))
def test_consumers_of_one_seed_and_offset_are_independent(one, other):
    a, b = features(CONSUMERS[one]().double()), features(CONSUMERS[other]().double())
    assert (a @ b.T / N).abs().max() < 5 / N**0.5


@pytest.mark.parametrize("shape", [(6,), (6, 3), (6, 2, 5), (6, 4), (6, 1, 1)], ids=str)
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_shares_are_parts_of_the_whole_draw(shape, backend, device):
    whole = ff.GaussianNoise(3, 9).materialize(shape, device=device, backend=backend)
    for first, stop in ((0, 2), (1, 4), (3, 6), (5, 6), (2, 2)):
        part = ff.GaussianNoise(3, 9, first).materialize((stop - first, *shape[1:]), device=device, backend=backend)
        assert torch.equal(part, whole[first:stop])


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_a_share_far_into_a_draw(backend, device):
    first = (1 << 40) + 1
    expected = reference_normals(3 * first, 9)
    got = ff.GaussianNoise(3, 9, first).materialize((3, 3), device=device, backend=backend)
    torch.testing.assert_close(got.cpu().flatten(), expected, rtol=1e-6, atol=0)


def reference_normals(start, numel):
    from fastflow.kernels.noise import reference

    return reference.gaussian(numel, 3, 9, start)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
@pytest.mark.parametrize("path", [ff.paths.CondOT(), ff.paths.VP(), ff.paths.SchrodingerBridge(0.5)], ids=repr)
def test_times_are_shared_out_like_noise(path, distribution):
    def draw(num, first=0):
        return ff.paths.sample_times(path, num, seed=1, offset=2, first_sample=first, distribution=distribution)

    assert torch.equal(torch.cat([draw(5), draw(5, 5), draw(3, 10)]), draw(13))


def test_uniforms_are_shared_out_like_noise():
    assert torch.equal(uniform((3, 5), 1, 2, first_sample=4), uniform((7, 5), 1, 2)[4:])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ff.GaussianNoise(0, 0, -1), ValueError, "first_sample must satisfy 0 <= first_sample < 2^63, got -1"),
        (lambda: ff.GaussianNoise(0, 0, 1 << 63), ValueError, "first_sample must satisfy"),
        (lambda: ff.GaussianNoise(0, 0, 1.0), TypeError, "first_sample must be an int, got float"),
        (lambda: ff.GaussianNoise(0, 0, True), TypeError, "first_sample must be an int, got bool"),
        (
            lambda: ff.GaussianNoise(0, 0, 1 << 62).materialize((2, 4)),
            ValueError,
            "first_sample must keep a draw within 2^58 elements, got first_sample 4611686018427387904 for samples of 4",
        ),
        (
            lambda: ff.interpolate(ff.GaussianNoise(0, 0, 1 << 57), X, T, path=ff.paths.CondOT()),
            ValueError,
            "first_sample must keep a draw within 2^58 elements",
        ),
        (lambda: uniform((2, 4), 0, 0, 1 << 62), ValueError, "first_sample must keep a draw"),
        (
            lambda: ff.paths.sample_times(ff.paths.CondOT(), 2, seed=0, first_sample=-1),
            ValueError,
            "first_sample must satisfy",
        ),
        (lambda: ff.GaussianNoise(0, num_samples=2.0), TypeError, "num_samples must be an int, got float"),
        (
            lambda: ff.GaussianNoise(0, num_samples=2).materialize((3, 4)),
            ValueError,
            r"noise was drawn for 2 samples, got shape \(3, 4\)",
        ),
        (
            lambda: ff.flow_matching_loss(X, ff.GaussianNoise(0, num_samples=1), X, T, path=ff.paths.CondOT()),
            ValueError,
            r"noise was drawn for 1 samples, got shape \(2, 3\)",
        ),
    ],
)
def test_bad_shares_are_named(make, error, message):
    with pytest.raises(error, match=message.replace("2^", r"2\^")):
        make()


X = torch.zeros(2, 3)
T = torch.tensor([0.1, 0.9])
BRIDGE = ff.paths.SchrodingerBridge(0.5)
OPS = {
    "interpolate": lambda x0, z, path: ff.interpolate(x0, X, T, path=path, noise=z),
    "target_velocity": lambda x0, z, path: ff.target_velocity(x0, X, T, path=path, noise=z),
    "flow_matching_loss": lambda x0, z, path: ff.flow_matching_loss(X, x0, X, T, path=path, noise=z),
    "sample": lambda x0, z, path: path.sample(x0, X, T, noise=z),
}


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("path", [BRIDGE, ff.paths.Tube(0.1), ff.paths.CondOT()], ids=repr)
def test_x0_and_noise_that_share_samples_are_refused(op, path):
    noise = ff.GaussianNoise(3, 4, 7)
    for other in (noise, ff.GaussianNoise(3, 4, 7), ff.GaussianNoise(3, 4, 8), ff.GaussianNoise(3, 4, 6)):
        with pytest.raises(ValueError, match="noise must be another draw than x0, with another offset"):
            OPS[op](noise, other, path)
    for other in (ff.GaussianNoise(3, 5, 7), ff.GaussianNoise(2, 4, 7), ff.GaussianNoise(3, 4, 9)):
        OPS[op](noise, other, path)
