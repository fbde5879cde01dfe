"""Counter-based random numbers on the CPU: the definition that every kernel must reproduce.

A draw is a pure function of ``(seed, offset, element index)``; README.md beside this file says which. The integer part
is NumPy because uint32 is a native type there.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

_MULTIPLIERS = np.array([[0xD2511F53], [0xCD9E8D57]], dtype=np.uint64)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CHUNK = 1 << 14  # counters at a time: the working set stays in the cache
_WORD = 0xFFFFFFFF


def philox_4x32(counter: np.ndarray, seed: int) -> np.ndarray:
    """Philox-4x32-10 (Salmon et al., SC 2011, section 4): four words for each counter.

    counter: uint32 ``[4, n]``; the key is the low and the high half of ``seed``. Returns uint32 ``[4, n]``.
    """
    even, odd = counter[0::2], counter[1::2]  # [2, n]: words (0, 2) and words (1, 3)
    keys = [[[(seed >> 32 * i) + r * step & _WORD] for i, step in enumerate(_KEY_STEPS)] for r in range(_ROUNDS)]
    for key in np.array(keys, dtype=np.uint32):
        product = np.multiply(even, _MULTIPLIERS, dtype=np.uint64)
        low, high = np.moveaxis(product.view("<u4").reshape(2, -1, 2), 2, 0)
        even, odd = high[::-1] ^ odd ^ key, low[::-1]
    return np.stack((even, odd), axis=1).reshape(4, -1)


def words(start: int, stop: int, seed: int, offset: int) -> np.ndarray:
    """The uint32 words of elements ``start .. stop - 1``.

    Element i is word ``i % 4`` of counter ``(i // 4, offset)``, each half of the counter low word first.
    """
    first = start // 4
    group = np.arange(first, -(-stop // 4), dtype=np.uint64)
    counter = np.empty((4, group.size), dtype=np.uint32)
    counter[:2] = group & np.uint64(_WORD), group >> np.uint64(32)
    counter[2:] = [[offset & _WORD], [offset >> 32]]
    return philox_4x32(counter, seed).T.reshape(-1)[start - 4 * first : stop - 4 * first]


def gaussian(numel: int, seed: int, offset: int, start: int = 0) -> Tensor:
    """Standard normals of elements ``start ...`` by Box-Muller, fp32 ``[numel]``, computed in fp64 and rounded once."""
    return _in_chunks(start, start + numel, lambda low, high: _box_muller(words(low, high, seed, offset)).flatten())


def uniform(numel: int, seed: int, offset: int) -> Tensor:
    """Uniforms on the open interval (0, 1), ``(top 23 bits + 1/2) / 2^23``, fp32 ``[numel]``."""

    def draw(start: int, stop: int) -> Tensor:
        top = words(start, stop, seed, offset) >> np.uint32(9)
        return torch.from_numpy(top.astype(np.float32)).add_(0.5).mul_(2.0**-23)

    return _in_chunks(0, numel, draw)


def _box_muller(word: np.ndarray) -> Tensor:
    """Pairs of words to pairs of normals, in fp64 throughout: uint32 ``[2 m]`` to ``[m, 2]``."""
    radius = torch.from_numpy((word[0::2] | np.uint32(1)).astype(np.float32).astype(np.float64))
    angle = torch.from_numpy(word[1::2] * (2.0 * math.pi / 2**32))
    radius.mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
    return torch.stack((angle.cos().mul_(radius), angle.sin_().mul_(radius)), dim=1)


def _in_chunks(start: int, stop: int, draw: Callable[[int, int], Tensor]) -> Tensor:
    """``draw(low, high)`` over whole groups of four, chunk by chunk, cut to ``start .. stop - 1``."""
    first = start // 4 * 4
    out = torch.empty(-(-stop // 4) * 4 - first)
    for low in range(0, out.numel(), 4 * _CHUNK):
        high = min(low + 4 * _CHUNK, out.numel())
        out[low:high] = draw(first + low, first + high)
    return out[start - first : stop - first]
