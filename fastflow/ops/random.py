"""Random numbers as a function of ``(seed, offset, element index)``. No global generator is read."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .. import _backend
from .._checks import check_integer
from ..kernels.noise import reference
from ..kernels.noise.domains import MAX_ELEMENTS, Domain
from ._custom_op import call, custom_op

_LIMIT = 1 << 63
_KEPT_NUMEL = 1 << 22  # 16 MiB
_DRAWN_TOGETHER = 1 << 17  # numbers; smaller draws spend their time on NumPy call overhead
_MOST_TOGETHER = 64  # offsets

_Draw = Callable[[int, int, int, int, int, Domain], Tensor]  # numel, seed, offset, count, start, domain


@dataclass(frozen=True)
class GaussianNoise:
    """Standard normal noise that the kernels draw where they use it and never store.

    A tensor ``[B, ...]`` with M elements a sample holds elements ``first_sample M .. (first_sample + B) M - 1`` of a
    draw, in contiguous order. Element i is a function of ``(seed, offset, i)`` alone: Philox-4x32-10 with the seed as
    key and ``(i // 4, offset)`` as counter, then Box-Muller [Salmon et al., "Parallel random numbers: as easy as 1, 2,
    3", SC 2011]. Use one seed for a run and one offset for a draw; :class:`fastflow.Stream` counts them. The ops accept
    it wherever they accept ``x0`` or ``noise``; :meth:`materialize` gives the same numbers as a tensor.

    Args:
        seed: 0 <= seed < 2^63.
        offset: 0 <= offset < 2^63; draws of different offsets share no random words, and neither do noise, times,
            probes and other draws of one seed and offset.
        first_sample: 0 <= first_sample < 2^63; the place of the first sample in a draw that several processes share.
        num_samples: the size of this process's share, if a larger batch must raise an error.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range.
    """

    seed: int
    offset: int = 0
    first_sample: int = 0
    num_samples: int | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_stream(self.seed, self.offset, self.first_sample)
        if self.num_samples is not None:
            check_integer("num_samples", self.num_samples)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise a ValueError if this noise cannot fill a tensor of this shape: its share or the draw is too short."""
        _first_element(shape, self.first_sample)
        if self.num_samples is not None and _num_samples(shape) > self.num_samples:
            raise ValueError(f"noise was drawn for {self.num_samples} samples, got shape {tuple(shape)}")

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
            ValueError: an unknown backend, the kernels cannot run on this device, or the draw or this share of it is
                too short: a draw has 2^58 elements.
        """
        self.check_shape(shape)
        return normals(
            shape, self.seed, self.offset, self.first_sample, Domain.NOISE, dtype=dtype, device=device, backend=backend
        )


def normals(
    shape: Sequence[int],
    seed: int,
    offset: int,
    first_sample: int,
    domain: Domain,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    backend: str = "auto",
) -> Tensor:
    """Draw standard normals for a consumer; arguments, result and errors as for :meth:`GaussianNoise.materialize`."""
    if not dtype.is_floating_point:
        raise TypeError(f"dtype must be a floating point type, got {dtype}")
    device, start = torch.device(device), _first_element(shape, first_sample)
    implementation = _backend.resolve(backend, "noise", _backend.Operand(torch.float32, device))
    return call(_gaussian, list(shape), seed, offset, start, domain, dtype, device, implementation)


def uniform(
    shape: Sequence[int],
    seed: int,
    offset: int = 0,
    first_sample: int = 0,
    domain: Domain = Domain.UNIFORM,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draw uniforms on the open interval (0, 1), the same on every device; arguments as for :class:`GaussianNoise`."""
    check_stream(seed, offset, first_sample)
    start = _first_element(shape, first_sample)
    return call(_uniform, list(shape), seed, offset, start, domain, dtype, torch.device(device))


def permutation(num: int, seed: int, offset: int = 0) -> Tensor:
    """Draw a permutation of ``0 .. num - 1``, int64 on the CPU; arguments as for :class:`GaussianNoise`."""
    check_stream(seed, offset)
    return torch.from_numpy(reference.words(0, num, seed, offset, Domain.PERMUTATION).argsort(kind="stable"))


def _num_samples(shape: Sequence[int]) -> int:
    return shape[0] if len(shape) else 1


def _first_element(shape: Sequence[int], first_sample: int) -> int:
    """Return the index of the first element of ``[B, ...]`` in its draw; raise a ValueError beyond the draw."""
    per_sample = math.prod(shape[1:])
    if (first_sample + _num_samples(shape)) * per_sample > MAX_ELEMENTS:
        raise ValueError(
            f"first_sample must keep a draw within 2^58 elements, got first_sample {first_sample} for samples of "
            f"{per_sample} elements"
        )
    return first_sample * per_sample


def check_stream(seed: int, offset: int, first_sample: int = 0) -> None:
    """Raise unless the arguments are valid for the generator."""
    check_position("seed", seed)
    check_position("offset", offset)
    check_position("first_sample", first_sample)


def check_position(name: str, value: int) -> None:
    """Raise unless value is an int from 0 to 2^63 - 1."""
    check_integer(name, value)
    if not 0 <= value < _LIMIT:
        raise ValueError(f"{name} must satisfy 0 <= {name} < 2^63, got {value}")


@custom_op("gaussian")
def _gaussian(
    shape: Sequence[int],
    seed: int,
    offset: int,
    start: int,
    domain: int,
    dtype: torch.dtype,
    device: torch.device,
    implementation: str = "reference",
) -> Tensor:
    numel = math.prod(shape)
    if implementation == "triton":
        from ..kernels.noise.gaussian import gaussian

        out = gaussian(numel, seed, offset, dtype, device, start, Domain(domain))
    else:
        drawn = _stream(reference.gaussians, numel, seed, offset, start, domain)
        out = drawn.to(device=device, dtype=dtype, copy=True)
    return out.view(shape)


@custom_op("uniform")
def _uniform(
    shape: Sequence[int], seed: int, offset: int, start: int, domain: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    drawn = _stream(reference.uniforms, math.prod(shape), seed, offset, start, domain)
    return drawn.to(device=device, dtype=dtype, copy=True).view(shape)


@_gaussian.register_fake
@_uniform.register_fake
def _(
    shape: Sequence[int],
    seed: int,
    offset: int,
    start: int,
    domain: int,
    dtype: torch.dtype,
    device: torch.device,
    *_: str,
) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=device)


def _stream(draw: _Draw, numel: int, seed: int, offset: int, start: int, domain: int) -> Tensor:
    """Return ``draw`` of one offset, fp32 ``[numel]``, read-only; small ones are cached, nearby offsets together."""
    if numel > _KEPT_NUMEL:
        return draw(numel, seed, offset, 1, start, Domain(domain))[0]
    count = min(_MOST_TOGETHER, max(1, _DRAWN_TOGETHER // max(1, numel)))
    return _streams(draw, numel, seed, offset // count * count, count, start, domain)[offset % count]


@functools.lru_cache(maxsize=3)
def _streams(draw: _Draw, numel: int, seed: int, first: int, count: int, start: int, domain: int) -> Tensor:
    # a training step draws its noise for x_t and again for the loss, and the next step takes the next offset
    return draw(numel, seed, first, count, start, Domain(domain))
