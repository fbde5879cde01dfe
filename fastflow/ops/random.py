"""Random numbers as a function of ``(seed, offset, element index)``. No global generator is read."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _backend
from ..kernels.noise import reference
from ._custom_op import call, custom_op

_LIMIT = 1 << 63
_KEPT_NUMEL = 1 << 22  # 16 MiB
_DRAWN_TOGETHER = 1 << 17  # numbers; smaller draws spend their time on NumPy call overhead
_MOST_TOGETHER = 64  # offsets


@dataclass(frozen=True)
class GaussianNoise:
    """Standard normal noise that the kernels draw where they use it and never store.

    Element i of a tensor of any shape (i counts in contiguous order) is a function of ``(seed, offset, i)`` alone:
    Philox-4x32-10 with the seed as key and ``(i // 4, offset)`` as counter, then Box-Muller [Salmon et al., "Parallel
    random numbers: as easy as 1, 2, 3", SC 2011]. Use one seed for a run and one offset for a step. The ops accept it
    wherever they accept ``x0`` or ``noise``; :meth:`materialize` gives the same numbers as a tensor.

    Args:
        seed: 0 <= seed < 2^63.
        offset: 0 <= offset < 2^63; streams of different offsets never overlap.

    Raises:
        TypeError: seed or offset is not an int.
        ValueError: seed or offset is out of range.
    """

    seed: int
    offset: int = 0

    def __post_init__(self) -> None:
        check_stream(self.seed, self.offset)

    def materialize(
        self,
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        backend: str = "auto",
    ) -> Tensor:
        """Return the noise as a tensor of this shape: the fp32 draws, cast to dtype.

        backend: ``"auto"``, ``"triton"`` or ``"reference"``; the numbers of both agree to 1e-6.

        Raises:
            TypeError: dtype is not a floating point type.
            ValueError: an unknown backend, or the kernels cannot run on this device.
        """
        if not dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating point type, got {dtype}")
        device = torch.device(device)
        implementation = _backend.resolve(backend, "noise", _backend.Operand(torch.float32, device))
        return call(_gaussian, list(shape), self.seed, self.offset, dtype, device, implementation)


def uniform(
    shape: Sequence[int],
    seed: int,
    offset: int = 0,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw uniforms on the open interval (0, 1), the same on every device; arguments as for :class:`GaussianNoise`."""
    check_stream(seed, offset)
    return call(_uniform, list(shape), seed, offset, dtype, torch.device(device))


def permutation(num: int, seed: int, offset: int = 0) -> Tensor:
    """Draw a permutation of ``0 .. num - 1``, int64 on the CPU; arguments as for :class:`GaussianNoise`."""
    check_stream(seed, offset)
    return torch.from_numpy(reference.words(0, num, seed, offset).argsort(kind="stable"))


def check_stream(seed: int, offset: int) -> None:
    """Raise unless seed and offset are valid for the generator."""
    for name, value in (("seed", seed), ("offset", offset)):
        if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
            raise TypeError(f"{name} must be an int, got {type(value).__name__}")
        if not 0 <= value < _LIMIT:
            raise ValueError(f"{name} must satisfy 0 <= {name} < 2^63, got {value}")


@custom_op("gaussian")
def _gaussian(
    shape: Sequence[int],
    seed: int,
    offset: int,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str = "reference",
) -> Tensor:
    numel = math.prod(shape)
    if implementation == "triton":
        from ..kernels.noise.gaussian import gaussian

        out = gaussian(numel, seed, offset, dtype, device)
    else:
        out = _stream(reference.gaussians, numel, seed, offset).to(device=device, dtype=dtype, copy=True)
    return out.view(shape)


@custom_op("uniform")
def _uniform(shape: Sequence[int], seed: int, offset: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    drawn = _stream(reference.uniforms, math.prod(shape), seed, offset)
    return drawn.to(device=device, dtype=dtype, copy=True).view(shape)


@_gaussian.register_fake
@_uniform.register_fake
def _(shape: Sequence[int], seed: int, offset: int, dtype: torch.dtype, device: torch.device, *_: str) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _stream(draw: Callable[[int, int, int, int], Tensor], numel: int, seed: int, offset: int) -> Tensor:
    """Return ``draw`` of one offset, fp32 ``[numel]``, read-only; small ones are cached, nearby offsets together."""
    if numel > _KEPT_NUMEL:
        return draw(numel, seed, offset, 1)[0]
    count = min(_MOST_TOGETHER, max(1, _DRAWN_TOGETHER // max(1, numel)))
    return _streams(draw, numel, seed, offset // count * count, count)[offset % count]


@functools.lru_cache(maxsize=3)
def _streams(draw: Callable[[int, int, int, int], Tensor], numel: int, seed: int, first: int, count: int) -> Tensor:
    # a training step draws its noise for x_t and again for the loss, and the next step takes the next offset
    return draw(numel, seed, first, count)
