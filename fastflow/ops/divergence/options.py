"""The options of a divergence: one checked object, or its fields as keywords."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

from torch import Tensor

from ..._backend import Backend
from ..._checks import check_choice, check_count, check_floating
from ...kernels.divergence.reference import Distribution
from ..random import check_stream

Method = Literal["hutchinson", "exact", "hutch++"]
Mode = Literal["auto", "forward", "reverse"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class DivergenceOptions:
    """Options of a divergence estimate.

    :func:`fastflow.divergence`, :func:`fastflow.log_likelihood` and :func:`fastflow.mode_guidance` take one of these
    as ``options``, or its fields as keywords.

    Args:
        method: ``"hutchinson"``, the mean over random probes; ``"exact"``, one basis vector for each of the M elements
            of a sample; ``"hutch++"``, which spends a third of num_probes on the range of J, takes the trace there
            exactly, and estimates the rest with another third: less variance where J has few large eigenvalues.
        num_probes: number K of Jacobian products of the random methods.
        distribution: that of the probes, ``"rademacher"`` (random signs, which have the least variance for symmetric J)
            or ``"gaussian"``.
        mode: ``"forward"`` computes J ε: memory does not grow with the field's depth, but each chunk evaluates the
            field again. ``"reverse"`` computes Jᵀ ε: one evaluation, whose graph is kept. ``"auto"`` is reverse on the
            CPU and wherever gradients are recorded, else forward. ``kernels/divergence/README.md`` compares them.
        seed, offset: stream of the probes, see :class:`fastflow.GaussianNoise`. Probe k of a stream does not depend on
            num_probes or chunk_size.
        probes: the caller's own, ``[K, *x.shape]``, for ``"hutchinson"``.
        chunk_size: number of Jacobian products computed together; memory grows with it, not with K. By default 64; on
            the CPU, for the sake of its cache, as many as have 32,768 numbers, but from 4 to 64.
        check_independence: check that the samples of a batch do not interact, with ``2 log2 B`` more Jacobian products.
            Not under torch.compile.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Raises:
        TypeError: probes is not a floating point tensor; num_probes, chunk_size, seed or offset is not an int.
        ValueError: an unknown method, distribution, mode or backend; num_probes or chunk_size below 1; seed or offset
            out of range; probes with another method than ``"hutchinson"``.
    """

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
        check_choice("method", self.method, Method)
        check_choice("distribution", self.distribution, Distribution)
        check_choice("mode", self.mode, Mode)
        check_choice("backend", self.backend, Backend)
        for name, number in (("num_probes", self.num_probes), ("chunk_size", self.chunk_size)):
            if number is not None:
                check_count(name, number)
        check_stream(self.seed, self.offset)
        if self.probes is not None:
            check_floating("probes", self.probes)
            if self.method != "hutchinson":
                raise ValueError(f"probes are for method 'hutchinson', got method {self.method!r}")

    @property
    def total_probes(self) -> int:
        """K: ``num_probes``, or the number of the caller's own probes."""
        return self.num_probes if self.probes is None else self.probes.shape[0]


_NAMES = tuple(field.name for field in fields(DivergenceOptions))


def collect(function: str, options: DivergenceOptions | None, keywords: dict[str, Any]) -> DivergenceOptions:
    """Return the options that the public function of this name was called with, as an object or as keywords.

    Raises:
        TypeError: both were given, an unknown keyword, or options of another type.
    """
    for name in keywords:
        if name not in _NAMES:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")
        if options is not None:
            raise TypeError(f"{function}() takes {name!r} in options or as a keyword, not both")
    if options is None:
        return DivergenceOptions(**keywords)
    if not isinstance(options, DivergenceOptions):
        raise TypeError(f"options must be DivergenceOptions, got {type(options).__name__}")
    return options


def shows_options(function: F) -> F:
    """List the options in the signature of a function that takes them as ``**keywords``, for ``help`` and the like."""
    signature = inspect.signature(function)
    parameters = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    for field in fields(DivergenceOptions):
        parameters.append(
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        )
    function.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return function
