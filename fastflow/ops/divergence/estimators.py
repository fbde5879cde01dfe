"""Estimators of a divergence: Hutchinson's, the exact trace, and Hutch++."""

import functools
import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from ..._checks import check_batched
from ..._dtypes import at_least_float32
from ...kernels.divergence import reference
from .independence import check_independence
from .jacobian import Field, Products, evaluate, jacobian_products
from .options import DivergenceOptions
from .probes import probes_of

_CHUNK = 64
_CPU_CHUNK_NUMBERS, _LEAST_CPU_CHUNK = 1 << 15, 4

logger = logging.getLogger("fastflow")


def estimate(field: Field, x: Tensor, options: DivergenceOptions) -> tuple[Tensor, Tensor]:
    """Return ``field(x)`` and S estimates of its divergence, ``[S, B]``, whose mean is the estimate."""
    _check_point(x, options.probes)
    if not x.numel():
        return evaluate(field, x), x.new_zeros((1, x.shape[0]), dtype=at_least_float32(x))
    products = jacobian_products(field, x, options.mode, _chunk_size(options, x))
    if options.check_independence:
        check_independence(products, x, options.seed, options.offset)
    return _ESTIMATORS[options.method](products, x, options)


def num_samples(options: DivergenceOptions, x: Tensor) -> int:
    """Return S, the number of estimates that :func:`estimate` returns for x."""
    if options.method == "exact" or not x.numel():
        return 1
    if options.method == "hutchinson":
        return options.total_probes
    rank = _sketch_rank(options, x)
    return 1 if rank == _sample_size(x) else options.num_probes - 2 * rank


def mean_and_stderr(samples: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the mean over the first axis and its standard error, detached; None for one sample."""
    if samples.shape[0] == 1:
        return samples[0], None
    return samples.mean(0), (samples.detach().var(0) / samples.shape[0]).sqrt()


def _hutchinson(products: Products, x: Tensor, options: DivergenceOptions) -> tuple[Tensor, Tensor]:
    num = num_samples(options, x)
    _hint(num, _sample_size(x))
    probes, samples = probes_of(options, x), []
    for start, stop in _chunks(num, options, x):
        v = probes.take(start, stop)
        value, out = products(v)
        samples.append(probes.dots(out, v, start))
    return value, torch.cat(samples)


def _exact(products: Products, x: Tensor, options: DivergenceOptions) -> tuple[Tensor, Tensor]:
    shape, size = x.shape, _sample_size(x)
    traces = []
    for start, stop in _chunks(size, options, x):
        basis = torch.nn.functional.one_hot(torch.arange(start, stop, device=x.device), size).to(x.dtype)
        value, out = products(basis.view(-1, 1, *shape[1:]).expand(-1, *shape))
        diagonal = reference.flat(out)[:, :, start:stop].diagonal(dim1=0, dim2=2)  # [B, n]
        traces.append(diagonal.to(at_least_float32(out)).sum(1))
    return value, torch.stack(traces).sum(0, keepdim=True)


def _hutch_plus_plus(products: Products, x: Tensor, options: DivergenceOptions) -> tuple[Tensor, Tensor]:
    rank = _sketch_rank(options, x)
    if rank == 0:
        return _hutchinson(products, x, options)
    probes = probes_of(options, x)
    with torch.no_grad():
        sketch = [products(probes.take(start, stop))[1] for start, stop in _chunks(rank, options, x)]
        Q = _orthonormal(torch.cat(sketch).detach())  # [R, B, ...]
    captured = []
    for start, stop in _chunks(rank, options, x):
        v = Q[start:stop].to(x.dtype)
        value, out = products(v)
        captured.append(reference.dots(out, v))
    trace = torch.cat(captured).sum(0, keepdim=True)
    if rank == _sample_size(x):
        return value, trace
    samples = []
    for start, stop in _chunks(num_samples(options, x), options, x):
        v = _project_out(Q, probes.take(rank + start, rank + stop))
        samples.append(reference.dots(products(v)[1], v))
    return value, trace + torch.cat(samples)


_ESTIMATORS = {"hutchinson": _hutchinson, "exact": _exact, "hutch++": _hutch_plus_plus}


def _check_point(x: Tensor, probes: Tensor | None) -> None:
    check_batched("x", x)
    if probes is not None and (probes.shape[1:] != x.shape or not probes.shape[:1].numel()):
        wanted = ", ".join(map(str, ("K", *x.shape)))
        raise ValueError(f"probes must be [{wanted}] with K >= 1, got shape {tuple(probes.shape)}")


def _sample_size(x: Tensor) -> int:
    return x.shape[1:].numel()


def _sketch_rank(options: DivergenceOptions, x: Tensor) -> int:
    """Return the dimension of the space on which Hutch++ takes the trace exactly."""
    return min(options.num_probes // 3, _sample_size(x))


def _chunk_size(options: DivergenceOptions, x: Tensor) -> int:
    num = _sample_size(x) if options.method == "exact" else options.total_probes
    return min(options.chunk_size or _default_chunk_size(x), num)


def _default_chunk_size(x: Tensor) -> int:
    """Return how many Jacobian products share the field's work, and on a CPU still fit the cache with it."""
    if x.device.type != "cpu":
        return _CHUNK
    return max(_LEAST_CPU_CHUNK, min(_CHUNK, _CPU_CHUNK_NUMBERS // x.numel()))


def _chunks(num: int, options: DivergenceOptions, x: Tensor) -> Iterator[tuple[int, int]]:
    size = _chunk_size(options, x)
    return ((start, min(start + size, num)) for start in range(0, num, size))


def _orthonormal(vectors: Tensor) -> Tensor:
    """Return, for each sample, an orthonormal basis that spans the vectors; both ``[R, B, ...]``."""
    wide = vectors.to(at_least_float32(vectors))
    return _from_columns(torch.linalg.qr(_to_columns(wide)).Q, vectors.shape)


def _project_out(Q: Tensor, v: Tensor) -> Tensor:
    """Return ``(I − Q Qᵀ) v`` for each sample. Q: ``[R, B, ...]``, v: ``[K, B, ...]``."""
    basis, columns = _to_columns(Q), _to_columns(v.to(Q.dtype))
    with torch.autocast(v.device.type, enabled=False):
        return _from_columns(columns - basis @ (basis.mT @ columns), v.shape).to(v.dtype)


def _to_columns(vectors: Tensor) -> Tensor:
    """``[K, B, ...]`` to ``[B, M, K]``."""
    return reference.flat(vectors).permute(1, 2, 0)


def _from_columns(columns: Tensor, shape: torch.Size) -> Tensor:
    """``[B, M, K]`` to ``[K, B, ...]`` = shape."""
    return columns.permute(2, 0, 1).reshape(shape)


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
