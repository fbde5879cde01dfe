"""Counter-based random numbers in plain PyTorch: the definition that every kernel must reproduce.

A draw is a pure function of ``(seed, offset, element index)``; README.md beside this file says which.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_CHUNK = 1 << 15  # counters at a time: the working set stays in the cache


def philox_4x32(counter: Tensor, seed: int) -> Tensor:
    """Philox-4x32-10 (Salmon et al., SC 2011): four words for each counter.

    counter: int64 ``[4, n]`` holding uint32 words; the key is the low and the high half of ``seed``.
    Returns int64 ``[4, n]`` holding uint32 words.
    """
    even, odd = counter[0::2], counter[1::2]  # [2, n]: (c0, c2) and (c1, c3)
    multipliers = torch.tensor(_MULTIPLIERS, device=counter.device)[:, None]
    keys = torch.tensor(_round_keys(seed), device=counter.device)[:, :, None]
    for key in keys.unbind():
        product = even * multipliers  # wraps in int64, which leaves the 64 bits right
        even = ((product.flip(0) >> 32) ^ odd ^ key) & _MASK
        odd = (product & _MASK).flip(0)
    return torch.stack((even, odd), dim=1).flatten(0, 1)


def words(start: int, stop: int, seed: int, offset: int, device: torch.device | str = "cpu") -> Tensor:
    """The uint32 words of elements ``start .. stop - 1``, as int64 ``[stop - start]``.

    Element i is word ``i % 4`` of counter ``(i // 4, offset)``, each half of the counter low word first.
    """
    first, last = start // 4, -(-stop // 4)
    group = torch.arange(first, last, device=device)
    high = torch.full_like(group, offset >> 32)
    counter = torch.stack((group & _MASK, group >> 32, torch.full_like(group, offset & _MASK), high))
    return philox_4x32(counter, seed).T.flatten()[start - 4 * first : stop - 4 * first]


def gaussian(
    numel: int, seed: int, offset: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normals ``[numel]`` by Box-Muller in fp32, then cast to dtype."""
    return _in_chunks(numel, dtype, device, lambda a, b: _box_muller(words(a, b, seed, offset, device)))


def uniform(
    numel: int, seed: int, offset: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Tensor:
    """Uniforms ``[numel]`` on the open interval (0, 1): (top 23 bits + 1/2) / 2^23, exact in fp32."""
    return _in_chunks(
        numel,
        dtype,
        device,
        lambda a, b: ((words(a, b, seed, offset, device) >> 9).to(torch.float32) + 0.5) * 2.0**-23,
    )


def _round_keys(seed: int) -> list[tuple[int, int]]:
    low, high = seed & _MASK, seed >> 32 & _MASK
    return [((low + r * _KEY_STEPS[0]) & _MASK, (high + r * _KEY_STEPS[1]) & _MASK) for r in range(_ROUNDS)]


def _box_muller(word: Tensor) -> Tensor:
    """Pairs of words to pairs of normals. word: int64 ``[4 m]``; returns fp32 ``[4 m]``."""
    word_radius, word_angle = word.view(-1, 2).unbind(1)
    u = (word_radius | 1).to(torch.float32) * 2.0**-32  # in [2^-32, 1]
    radius = torch.sqrt(-2.0 * torch.log(u))
    # angle = quadrant * pi/2 + phi with |phi| <= pi/4: exact in integers, so that sin and cos are accurate at their zeros
    quadrant = (word_angle + (1 << 29)) >> 30
    phi = (word_angle - (quadrant << 30)).to(torch.float32) * (2.0 * math.pi / 2.0**32)
    sine, cosine = torch.sin(phi), torch.cos(phi)
    odd = (quadrant & 1).bool()
    x = torch.where(odd, sine, cosine) * torch.where(((quadrant + 1) & 2).bool(), -radius, radius)
    y = torch.where(odd, cosine, sine) * torch.where((quadrant & 2).bool(), -radius, radius)
    return torch.stack((x, y), dim=1).flatten()


def _in_chunks(
    numel: int, dtype: torch.dtype, device: torch.device | str, draw: Callable[[int, int], Tensor]
) -> Tensor:
    """Concatenate ``draw(start, stop)`` over whole groups of four, chunk by chunk, and keep the first ``numel``."""
    size = 4 * _CHUNK if torch.device(device).type == "cpu" else max(4, numel)
    whole = -(-numel // 4) * 4
    parts = [draw(a, min(a + size, whole)).to(dtype) for a in range(0, whole, size)]
    if len(parts) == 1:
        return parts[0][:numel]
    return torch.cat(parts)[:numel] if parts else torch.empty(0, dtype=dtype, device=device)
