"""The divergence of a field, exactly or by probes: one evaluation of the field, many Jacobian products at a time."""

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ... import _backend
from ..._checks import check_floating
from ...kernels.divergence import reference
from ...kernels.divergence.reference import Distribution
from ..random import GaussianNoise, check_stream
from . import rules
from .jacobian import Field, Mode, Products, jacobian_products

Method = Literal["hutchinson", "exact", "hutch++"]

_CPU_CHUNK = 8
_GPU_CHUNK = 64

logger = logging.getLogger("fastflow")


class Divergence(NamedTuple):
    """What :func:`divergence` returns.

    value: ``field(x)``; divergence: ``[B]``; stderr: ``[B]``, the standard error of the divergence over the probes, or
    None where there is no spread to measure (one probe, or the exact trace).
    """

    value: Tensor
    divergence: Tensor
    stderr: Tensor | None


def divergence(
    field: Field,
    x: Tensor,
    *,
    method: Method = "hutchinson",
    num_probes: int = 1,
    distribution: Distribution = "rademacher",
    mode: Mode = "auto",
    seed: int = 0,
    offset: int = 0,
    probes: Tensor | None = None,
    chunk_size: int | None = None,
    check_independence: bool = False,
    backend: str = "auto",
) -> Divergence:
    """The divergence of a field at each sample, ``div_b = tr ∂field_b/∂x_b``, exactly or as ``mean_k ε_kᵀ J ε_k``.

    The samples of a batch must not interact: ``field(x)[b]`` may depend on ``x[b]`` alone (no batch norm).

    Args:
        field: x to a tensor of the same shape; close over times, labels and parameters.
        x: ``[B, ...]``, floating point: points, images, tokens.
        method: ``"hutchinson"``, the mean over random probes; ``"exact"``, a basis vector for each of the M elements of
            a sample; ``"hutch++"``, which spends a third of num_probes on the range of J, takes the trace there exactly
            and the mean of a third of the probes on the rest: less variance where J has few large eigenvalues.
        num_probes: Jacobian products K of the random methods.
        distribution: of the probes: ``"rademacher"`` (signs, which have the least variance for symmetric J) or
            ``"gaussian"``.
        mode: ``"forward"`` (J ε: memory flat in the field's depth, but each chunk evaluates the field again),
            ``"reverse"`` (Jᵀ ε: one evaluation, whose graph is kept) or ``"auto"``: reverse on the CPU and wherever
            gradients are recorded, else forward. ``kernels/divergence/README.md`` says when each wins.
        seed, offset: the stream of the probes, see :class:`fastflow.GaussianNoise`. Probe k of a stream does not depend
            on num_probes or chunk_size.
        probes: the caller's own, ``[K, *x.shape]``, for ``"hutchinson"``.
        chunk_size: Jacobian products at a time: memory grows with it, not with K. By default 8 on the CPU, whose cache
            holds no more, and 64 elsewhere.
        check_independence: test, with ``2 log2 B`` more products, that the samples do not interact. Not under
            torch.compile.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        :class:`Divergence`, in fp32 (fp64 if the field's values are fp64). Value and divergence are differentiable in x
        and in all that field closes over, the standard error is not; the gradient of hutch++ holds its sketch fixed,
        which leaves it unbiased. Under ``torch.no_grad()`` no graph is kept.

    Raises:
        TypeError: x, probes or the field's value is not a floating point tensor.
        ValueError: an unknown method, distribution or mode; num_probes or chunk_size below 1; probes of another shape;
            a field that changes the shape or, if checked, couples samples; a backend that cannot serve.
        RuntimeError: under ``torch.inference_mode()``, where PyTorch has no derivatives.

    Source: Hutchinson, Commun. Stat. Simul. Comput. 18 (1989); Grathwohl et al., 1810.01367, eq. 8;
    hutch++: Meyer et al., 2010.09649, algorithm 1.
    """
    estimator = Estimator(
        method, num_probes, distribution, mode, seed, offset, probes, chunk_size, check_independence, backend
    )
    value, samples = estimator(field, x)
    return Divergence(value, *mean_and_stderr(samples))


def mean_and_stderr(samples: Tensor) -> tuple[Tensor, Tensor | None]:
    """Mean over the first axis and its standard error (None for one sample), which is a number, not a function."""
    if samples.shape[0] == 1:
        return samples[0], None
    return samples.mean(0), (samples.detach().var(0) / samples.shape[0]).sqrt()


@dataclass(frozen=True)
class Estimator:
    """How a divergence is estimated: the arguments of :func:`divergence`, checked."""

    method: Method = "hutchinson"
    num_probes: int = 1
    distribution: Distribution = "rademacher"
    mode: Mode = "auto"
    seed: int = 0
    offset: int = 0
    probes: Tensor | None = None
    chunk_size: int | None = None
    check_independence: bool = False
    backend: str = "auto"

    def __post_init__(self) -> None:
        choices = {"method": Method, "distribution": Distribution, "mode": Mode, "backend": _backend.Backend}
        for name, kind in choices.items():
            if getattr(self, name) not in get_args(kind):
                known = ", ".join(map(repr, get_args(kind)))
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name, number in (("num_probes", self.num_probes), ("chunk_size", self.chunk_size)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        check_stream(self.seed, self.offset)
        if self.probes is not None:
            check_floating("probes", self.probes)
            if self.method != "hutchinson":
                raise ValueError(f"probes are for method 'hutchinson', got method {self.method!r}")

    def __call__(self, field: Field, x: Tensor) -> tuple[Tensor, Tensor]:
        """``field(x)`` and S estimates of its divergence, ``[S, B]``, whose mean is the estimate."""
        check_floating("x", x)
        if x.ndim == 0:
            raise ValueError("x must be [B, ...], got a scalar")
        if self.probes is not None and (self.probes.shape[1:] != x.shape or not self.probes.shape[:1].numel()):
            wanted = ", ".join(map(str, ("K", *x.shape)))
            raise ValueError(f"probes must be [{wanted}] with K >= 1, got shape {tuple(self.probes.shape)}")
        if not x.numel():
            return field(x), x.new_zeros((1, x.shape[0]), dtype=torch.promote_types(x.dtype, torch.float32))
        products = jacobian_products(field, x, self.mode, self._together(x))
        if self.check_independence:
            _check_independence(products, x, self.seed, self.offset)
        return {"hutchinson": self._hutchinson, "exact": self._exact, "hutch++": self._hutch}[self.method](products, x)

    def num_samples(self, x: Tensor) -> int:
        """S for this x."""
        if self.method == "exact" or not x.numel():
            return 1
        if self.method == "hutchinson":
            return self.num_probes if self.probes is None else self.probes.shape[0]
        rank, size = self._rank(x), x.shape[1:].numel()
        return 1 if rank == size else self.num_probes - 2 * rank

    def _hutchinson(self, products: Products, x: Tensor) -> tuple[Tensor, Tensor]:
        num = self.num_samples(x)
        _hint(num, x.shape[1:].numel())
        samples = []
        for start, stop in self._chunks(num, self._together(x)):
            v = self._draw(x, start, stop) if self.probes is None else self.probes[start:stop].to(x)
            value, out = products(v)
            samples.append(self._dots(out, v, start))
        return value, torch.cat(samples)

    def _exact(self, products: Products, x: Tensor) -> tuple[Tensor, Tensor]:
        shape, size = x.shape, x.shape[1:].numel()
        traces = []
        for start, stop in self._chunks(size, self._together(x)):
            basis = torch.nn.functional.one_hot(torch.arange(start, stop, device=x.device), size).to(x.dtype)
            value, out = products(basis.view(-1, 1, *shape[1:]).expand(-1, *shape))
            diagonal = reference.flat(out)[:, :, start:stop].diagonal(dim1=0, dim2=2)  # [B, n]
            traces.append(diagonal.to(torch.promote_types(out.dtype, torch.float32)).sum(1))
        return value, torch.stack(traces).sum(0, keepdim=True)

    def _hutch(self, products: Products, x: Tensor) -> tuple[Tensor, Tensor]:
        rank = self._rank(x)
        if rank == 0:
            return self._hutchinson(products, x)
        with torch.no_grad():
            sketch = [products(self._draw(x, start, stop))[1] for start, stop in self._chunks(rank, self._together(x))]
            Q = _orthonormal(torch.cat(sketch).detach())  # [R, B, ...]
        captured = []
        for start, stop in self._chunks(rank, self._together(x)):
            v = Q[start:stop].to(x.dtype)
            value, out = products(v)
            captured.append(reference.dots(out, v))
        trace = torch.cat(captured).sum(0, keepdim=True)
        if rank == x.shape[1:].numel():
            return value, trace
        samples = []
        for start, stop in self._chunks(self.num_samples(x), self._together(x)):
            v = _outside(Q, self._draw(x, rank + start, rank + stop))
            samples.append(reference.dots(products(v)[1], v))
        return value, trace + torch.cat(samples)

    def _rank(self, x: Tensor) -> int:
        """Dimension of the space on which hutch++ takes the trace exactly."""
        return min(self.num_probes // 3, x.shape[1:].numel())

    def _together(self, x: Tensor) -> int:
        """How many Jacobian products are taken at a time."""
        if self.method == "exact":
            num = x.shape[1:].numel()
        else:
            num = self.num_probes if self.probes is None else self.probes.shape[0]
        return min(self.chunk_size or (_CPU_CHUNK if x.device.type == "cpu" else _GPU_CHUNK), num)

    def _chunks(self, num: int, size: int) -> Iterator[tuple[int, int]]:
        return ((start, min(start + size, num)) for start in range(0, num, size))

    def _draw(self, x: Tensor, start: int, stop: int) -> Tensor:
        return self._stream(x, start).materialize((stop - start, *x.shape), x.device)

    def _dots(self, products: Tensor, probes: Tensor, first: int) -> Tensor:
        """On Triton the probes are drawn again, not read."""
        if self.probes is None and _backend.resolve(self.backend, "divergence", products) == "triton":
            return rules.probe_dots(products, self._stream(probes, first))
        return reference.dots(products, probes)

    def _stream(self, like: Tensor, first: int) -> rules.Draw:
        return rules.Draw(self.seed, self.offset, first, self.distribution, like.dtype)


def _orthonormal(vectors: Tensor) -> Tensor:
    """An orthonormal basis, sample by sample, of a space that holds the span of the vectors; both ``[R, B, ...]``."""
    wide = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
    return _vectors(torch.linalg.qr(_columns(wide)).Q, vectors.shape)


def _outside(Q: Tensor, v: Tensor) -> Tensor:
    """``(I − Q Qᵀ) v``, sample by sample. Q: ``[R, B, ...]``, v: ``[K, B, ...]``."""
    basis, columns = _columns(Q), _columns(v.to(Q.dtype))
    return _vectors(columns - basis @ (basis.mT @ columns), v.shape).to(v.dtype)


def _columns(vectors: Tensor) -> Tensor:
    """``[K, B, ...]`` to ``[B, M, K]``."""
    return reference.flat(vectors).permute(1, 2, 0)


def _vectors(columns: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_columns`."""
    return columns.permute(2, 0, 1).reshape(shape)


def _check_independence(products: Products, x: Tensor, seed: int, offset: int) -> None:
    """Raise if a sample's value depends on another sample.

    Two samples differ in a bit of their index: for every bit, vectors on one side alone must not reach the other side.
    """
    num = x.shape[0]
    index = torch.arange(num, device=x.device)
    sides = [index >> bit & 1 == side for bit in range((num - 1).bit_length()) for side in (0, 1)]
    if not sides:
        return
    inside = torch.stack(sides)  # [S, B]
    noise = GaussianNoise(seed, offset).materialize((len(sides), *x.shape), dtype=x.dtype, device=x.device)
    rows = inside.view(*inside.shape, *(1,) * (x.ndim - 1))
    _, out = products(torch.where(rows, noise, 0.0))
    reached = (out.reshape(*inside.shape, -1) != 0).any(2) & ~inside
    if bool(reached.any()):
        raise ValueError(
            f"field must treat the samples of a batch independently, but sample {int(reached.any(0).nonzero()[0])} "
            "and others depend on each other"
        )


def _hint(num_probes: int, size: int) -> None:
    if num_probes > size and not torch.compiler.is_compiling():
        _hint_once(num_probes, size)


@functools.cache
def _hint_once(num_probes: int, size: int) -> None:
    logger.warning(
        "divergence: %d probes for samples of %d elements: method='exact' costs less and has no variance",
        num_probes,
        size,
    )
