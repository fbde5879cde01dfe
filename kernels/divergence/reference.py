"""Probes and their dot products in PyTorch: the definition, and the implementation used where Triton cannot run."""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from ..noise.domains import Domain
from ..noise.reference import gaussian, words

Distribution = Literal["rademacher", "gaussian"]


def probes(shape: Sequence[int], seed: int, offset: int, first: int, distribution: str) -> Tensor:
    """Draw probes ``first .. first + K - 1`` of a stream, fp32 ``[K, B, ...]`` = shape.

    Element e of a stream counts over ``[all probes, B, ...]`` in contiguous order; README.md defines its value.
    """
    numel, start = math.prod(shape), first * math.prod(shape[1:])
    if distribution == "gaussian":
        return gaussian(numel, seed, offset, start, Domain.NORMAL_PROBES).view(*shape)
    return rademacher(numel, seed, offset, start).view(*shape)


def rademacher(numel: int, seed: int, offset: int, start: int = 0) -> Tensor:
    """Draw signs, elements ``start ...``, fp32 ``[numel]``: bit ``e % 32`` of word ``e // 32``, a set bit is -1."""
    first = start // 32
    packed = words(first, -(-(start + numel) // 32), seed, offset, Domain.SIGNS).astype("<u4").view(np.uint8)
    bits = torch.from_numpy(np.unpackbits(packed, bitorder="little"))[start - 32 * first :][:numel]
    return bits.float().mul_(-2.0).add_(1.0)


def dots(products: Tensor, probes: Tensor) -> Tensor:
    """Return ``sum_j probes_kbj products_kbj``, at least in fp32. Both ``[K, B, ...]``; returns ``[K, B]``."""
    dtype = at_least_float32(products)
    return flat(products.to(dtype) * probes.to(dtype)).sum(2)


def scaled(probes: Tensor, c: Tensor) -> Tensor:
    """Return ``c_kb probes_kbj``, the adjoint of :func:`dots`. probes: ``[K, B, ...]``; c: ``[K, B]``."""
    return probes.to(c.dtype) * c.reshape(*c.shape, *(1,) * (probes.ndim - 2))


def flat(x: Tensor) -> Tensor:
    """Flatten ``[K, B, ...]`` to ``[K, B, M]``."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))
