"""Counter-based random numbers on the CPU: the definition that every kernel must reproduce.

A draw is a pure function of its domain and ``(seed, offset, element index)``, equations (1) to (3) of README.md. The
integer part is NumPy, which multiplies and shifts unsigned numbers; words stay in uint64 so that no call converts.
"""

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .domains import Domain

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CHUNK = 1 << 14  # counters at a time: the working set stays in the cache
_WORD = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def philox_4x32(counter: np.ndarray, seed: int) -> np.ndarray:
    """Return the four words of each counter by Philox-4x32-10 (Salmon et al., SC 2011, section 4).

    counter: 32-bit words, ``[4, n]``; the key is the low and the high half of ``seed``. Returns uint64 ``[4, n]``, the
    high halves zero.
    """
    words = np.array(counter, dtype=np.uint64)
    even, odd = words[0::2], words[1::2]  # [2, n]: words (0, 2) and words (1, 3)
    product = np.empty(even.shape, dtype=np.uint64)
    swapped = product[::-1]
    for key in _round_keys(seed):
        np.multiply(even, _MULTIPLIERS, out=product)
        np.right_shift(swapped, _HALF, out=even)
        np.bitwise_xor(even, odd, out=even)
        np.bitwise_xor(even, key, out=even)
        np.bitwise_and(swapped, _WORD, out=odd)
    return words


def words(start: int, stop: int, seed: int, offset: int, domain: Domain) -> np.ndarray:
    """Return the uint32 words of elements ``start .. stop - 1``.

    Element i is word ``i % 4`` of counter ``(domain 2^56 + i // 4, offset)``, each half of the counter low word first.
    """
    first = start // 4
    drawn = philox_4x32(_counters(first, -(-stop // 4), offset, 1, domain), seed)
    return drawn.T.astype(np.uint32).reshape(-1)[start - 4 * first : stop - 4 * first]


def gaussian(numel: int, seed: int, offset: int, start: int = 0, domain: Domain = Domain.NOISE) -> Tensor:
    """Draw standard normals, elements ``start ...``, by Box-Muller in fp64 and rounded once: fp32 ``[numel]``."""
    return gaussians(numel, seed, offset, 1, start, domain)[0]


def gaussians(numel: int, seed: int, offset: int, count: int, start: int, domain: Domain) -> Tensor:
    """Draw :func:`gaussian` for the offsets ``offset .. offset + count - 1``: fp32 ``[count, numel]``."""
    return _streams(_box_muller, start, start + numel, seed, offset, count, domain)


def uniforms(numel: int, seed: int, offset: int, count: int, start: int, domain: Domain) -> Tensor:
    """Draw uniforms on the open interval (0, 1), ``(top 23 bits + 1/2) / 2^23``, for ``count`` offsets from ``offset``.

    Returns elements ``start ...`` of each, fp32 ``[count, numel]``.
    """
    return _streams(_unit_interval, start, start + numel, seed, offset, count, domain)


def _box_muller(words: np.ndarray) -> Tensor:
    """Turn words (0, 1) and (2, 3) into two pairs of normals, in fp64 until the store: ``[4, n]`` to ``[n, 4]``."""
    uniform = (words[0::2] | np.uint64(1)).astype(np.float32).astype(np.float64)
    uniform *= 2.0**-32
    radius = torch.from_numpy(np.log(uniform, out=uniform)).mul_(-2.0).sqrt_()  # (2); NumPy's logarithm is faster
    angle = torch.from_numpy(words.view(np.int64))[1::2].to(torch.float64).mul_(2.0 * math.pi / 2**32)
    normals = torch.empty(words.shape[1], 2, 2)
    cosines, sines = normals.permute(2, 1, 0)
    torch.mul(angle.cos(), radius, out=cosines)  # (3)
    torch.mul(angle.sin_(), radius, out=sines)
    return normals.view(-1, 4)


def _unit_interval(words: np.ndarray) -> Tensor:
    return torch.from_numpy((words.T >> np.uint64(9)).astype(np.float32)).add_(0.5).mul_(2.0**-23)


def _streams(
    transform: Callable[[np.ndarray], Tensor],
    start: int,
    stop: int,
    seed: int,
    offset: int,
    count: int,
    domain: Domain,
) -> Tensor:
    """Transform the words of elements ``start .. stop - 1`` of ``count`` offsets: fp32 ``[count, stop - start]``."""
    first, last = start // 4, -(-stop // 4)
    out = torch.empty(count, last - first, 4)
    step = max(1, _CHUNK // count)
    for low in range(first, last, step):
        high = min(low + step, last)
        drawn = transform(philox_4x32(_counters(low, high, offset, count, domain), seed))
        out[:, low - first : high - first] = drawn.view(count, -1, 4)
    return out.view(count, -1)[:, start - 4 * first : stop - 4 * first]


def _counters(first: int, last: int, offset: int, count: int, domain: Domain) -> np.ndarray:
    """Return the counters of groups ``first .. last - 1`` for each of ``count`` offsets: ``[4, count n]``, (1)."""
    group = np.arange(first, last, dtype=np.uint64) | np.uint64(domain.bits)
    stream = np.arange(count, dtype=np.uint64)[:, None] + np.uint64(offset)
    counter = np.empty((4, count, last - first), dtype=np.uint64)
    counter[0], counter[1] = group & _WORD, group >> _HALF
    counter[2], counter[3] = stream & _WORD, stream >> _HALF
    return counter.reshape(4, -1)


@functools.lru_cache(maxsize=16)
def _round_keys(seed: int) -> np.ndarray:
    """Return the key of every round, ``[10, 2, 1]``."""
    keys = [[[(seed >> 32 * i) + r * step & 0xFFFFFFFF] for i, step in enumerate(_KEY_STEPS)] for r in range(_ROUNDS)]
    return np.array(keys, dtype=np.uint64)
