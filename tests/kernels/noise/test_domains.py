"""Domains: consumers of one seed and offset draw from counters that never meet."""

import itertools

import numpy as np
import pytest
import torch

from fastflow.kernels.noise import reference
from fastflow.kernels.noise.domains import GROUP_BITS, MAX_ELEMENTS, Domain

PAIRS = list(itertools.combinations(Domain, 2))
N = 1 << 16


def words(domain, start=0, num=N):
    return reference.words(start, start + num, 5, 7, domain)


def test_values_are_part_of_the_definition():
    assert {domain.name: int(domain) for domain in Domain} == {
        "NOISE": 0,
        "UNIFORM": 1,
        "UNIFORM_TIMES": 2,
        "NORMAL_TIMES": 3,
        "PERMUTATION": 4,
        "SIGNS": 5,
        "NORMAL_PROBES": 6,
        "INDEPENDENCE": 7,
    }


def test_the_domain_is_the_top_byte_of_the_group():
    for domain in Domain:
        counter = reference._counters((1 << GROUP_BITS) - 1, 1 << GROUP_BITS, 7, 1, domain)
        assert counter[:, 0].tolist() == [0xFFFFFFFF, int(domain) << 24 | 0xFFFFFF, 7, 0]
    assert len({domain.bits for domain in Domain}) == len(Domain)
    assert all(0 <= domain.bits < 1 << 63 for domain in Domain)  # a signed number in the kernels


@pytest.mark.parametrize(("one", "other"), PAIRS, ids=lambda domain: domain.name)
def test_two_domains_share_no_words_and_are_uncorrelated(one, other):
    """Counters are distinct, so whole groups of 128 bits are; single words meet by chance, N / 2^32 of the time."""
    a, b = (words(domain).reshape(-1, 4) for domain in (one, other))
    assert not {x.tobytes() for x in a} & {x.tobytes() for x in b}
    assert np.isin(a, b).sum() < 12  # 1.0 expected
    u, v = (torch.from_numpy(x.astype(np.float64)) for x in (a, b))
    for x, y in ((u, v), (u.flatten()[:-1], v.flatten()[1:])):
        corr = torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1]
        assert abs(corr) < 4.5 / N**0.5


def test_the_first_domain_draws_what_it_drew_before_there_were_domains():
    assert torch.equal(reference.gaussian(9, 5, 7), reference.gaussian(9, 5, 7, 0, Domain.NOISE))
    counter = np.array([[0, 1], [0, 0], [7, 7], [0, 0]])
    assert words(Domain.NOISE, 0, 8).tolist() == reference.philox_4x32(counter, 5).T.flatten().tolist()


def test_the_last_elements_of_a_draw_are_its_own():
    last = words(Domain.NOISE, MAX_ELEMENTS - 8, 8)
    assert not np.isin(last, words(Domain.UNIFORM)).any()
