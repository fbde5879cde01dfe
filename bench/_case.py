"""A case: several ways to compute one thing. Each must agree with float64 at the timed shape before it is timed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bench.roofline import Floor

Call = Callable[[], Sequence[Tensor]]


@dataclass(frozen=True)
class Way:
    """One implementation. call: what is timed. check: what is compared with the truth, if not ``call`` itself: where
    ``call`` draws noise that no one else can draw, the same code on given noise."""

    call: Call
    check: Call | None = None


@dataclass(frozen=True)
class Case:
    """What is timed, and what a row says of it.

    op, mode, shape, dtype: the row's key, with the implementation. ways: implementation to Way, the baseline first.
    truth: the same results in float64. budget: largest relative error (L2, per result) that is still a right result.
    factor: how many times the baseline's own error fastflow's may be, where that is less than the budget; for half
    precision, FlashAttention's 2 for values and 3 for derivatives. floor: the FLOPs and bytes that nothing can avoid.
    note: a remark for the report: why it is slower, say. skipped: implementations that cannot take part, with the
    reason. graph: false where no CUDA graph can be made of it, because it waits for the CPU. least_rounds: of timing,
    where a difference is small.
    """

    op: str
    mode: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    ways: Mapping[str, Way]
    truth: Call
    budget: float
    floor: Floor
    note: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    factor: float = math.inf
    graph: bool = True
    least_rounds: int = 5

    @property
    def baseline(self) -> str:
        return next(iter(self.ways))

    @property
    def title(self) -> str:
        return f"{self.op}, {self.mode}, {list(self.shape)}, {str(self.dtype).removeprefix('torch.')}"


class Verdict(NamedTuple):
    """errors: of the ways that may be timed. left_out: the others, with the reason."""

    errors: dict[str, float]
    left_out: dict[str, str]


class WrongResultError(AssertionError):
    """fastflow, or what it is compared with, disagrees with float64: nothing is timed."""


def is_own(implementation: str) -> bool:
    return implementation.startswith("fastflow")


def verify(case: Case) -> Verdict:
    """The largest relative error of each way against float64.

    Raises WrongResultError where fastflow or the baseline is wrong, and what either raises; other implementations that
    are wrong or raise are left out, and so is a baseline that runs out of memory.
    """
    truth = [y.detach() for y in case.truth()]
    errors, left_out = {}, dict(case.skipped)
    for name, way in case.ways.items():
        try:
            results = (way.check or way.call)()
        except Exception as error:  # of a package or a compiler, so of any type
            if is_own(name) or (name == case.baseline and not isinstance(error, torch.OutOfMemoryError)):
                raise
            left_out[name] = _reason(error)
        else:
            errors[name] = max(relative_error(y, want) for y, want in zip(results, truth, strict=True))
            del results
    allowed = min(case.budget, case.factor * errors.get(case.baseline, math.inf))
    for name, error in list(errors.items()):
        limit = allowed if is_own(name) else case.budget
        if error <= limit:
            continue
        if is_own(name) or name == case.baseline:
            raise WrongResultError(f"{case.title}: {name} has relative error {error:.1e}, {limit:.1e} is right")
        left_out[name] = f"relative error {errors.pop(name):.1e}"
    return Verdict(errors, left_out)


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}"


def relative_error(got: Tensor, want: Tensor) -> float:
    """The L2 norm of the difference, by that of the truth, or absolute where the truth is zero; infinite where NaN."""
    if got.shape != want.shape:
        return math.inf
    difference = (got.detach().double() - want).norm()
    error = float(difference / want.norm() if want.any() else difference)
    return math.inf if math.isnan(error) else error
