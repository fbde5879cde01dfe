"""Benchmark cases: several ways to compute one result, each checked against float64 before it is timed."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from bench.harness.roofline import Floor
from bench.harness.rows import Row, dtype_name

Call = Callable[[], Sequence[Tensor]]
PLAIN_STEP = "fastflow plain step"  # the yardstick of training steps with a tangent


@dataclass(frozen=True)
class Way:
    """One implementation.

    call: the function that is timed. check: the function that is compared with the truth, by default ``call``; needed
    where ``call`` draws noise that no other way can draw. truth: of a yardstick, which computes something else.
    """

    call: Call
    check: Call | None = None
    truth: Call | None = None


@dataclass(frozen=True)
class Entry:
    """The key of a case's rows, and how the report lists them.

    op, mode, shape, dtype: the key, together with the implementation and the launch.
    label: the case's name in the report's tables of fastflow against its baselines; "" leaves it out of them.
    baselines: the implementations that those tables compare fastflow with.
    readme: those of ``baselines`` that the README shows.
    reason: why fastflow may be slower than a baseline; completes "because ...".
    yardstick: the mode of the same work without tangents, whose time with flash attention is shown beside this one's.
    """

    op: str
    mode: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    label: str = ""
    baselines: tuple[str, ...] = ()
    readme: tuple[str, ...] = ()
    reason: str = ""
    yardstick: str = ""

    @property
    def key(self) -> Row:
        return {"op": self.op, "mode": self.mode, "shape": list(self.shape), "dtype": dtype_name(self.dtype)}

    @property
    def listing(self) -> Row:
        return {
            "label": self.label,
            "baselines": list(self.baselines),
            "readme": list(self.readme),
            "reason": self.reason,
            "yardstick": self.yardstick,
        }

    @property
    def title(self) -> str:
        return f"{self.op}, {self.mode}, {list(self.shape)}, {dtype_name(self.dtype)}"


@dataclass(frozen=True)
class Case:
    """One benchmark.

    entry: the rows' key and listing. ways: implementation to Way, the baseline first. truth: the results in float64.
    budget: the largest relative error (L2, per result) that is accepted.
    factor: the largest error of fastflow over the baseline's own, where that is less than the budget; in half
    precision FlashAttention's 2 for values and 3 for derivatives.
    floor: the FLOPs and bytes that no implementation can avoid.
    note: a remark for the device's page. skipped: implementations that cannot take part, with the reason.
    graph: False if the case waits for the CPU, so that no CUDA graph can hold it.
    least_rounds: the least number of timing rounds; raise it where the difference is small.
    """

    entry: Entry
    ways: Mapping[str, Way]
    truth: Call
    budget: float
    floor: Floor
    note: str = ""
    factor: float = math.inf
    skipped: Mapping[str, str] = field(default_factory=dict)
    graph: bool = True
    least_rounds: int = 5

    @property
    def baseline(self) -> str:
        return next(iter(self.ways))


class Verdict(NamedTuple):
    """errors: of the ways that may be timed. left_out: the other ways, with the reason."""

    errors: dict[str, float]
    left_out: dict[str, str]


class WrongResultError(AssertionError):
    """fastflow or its baseline disagrees with float64, so nothing is timed."""


def is_own(implementation: str) -> bool:
    return implementation.startswith("fastflow")


def verify(case: Case) -> Verdict:
    """Return the largest relative error of each way against float64.

    Raises WrongResultError if fastflow or the baseline is wrong, and whatever either raises. Other implementations that
    are wrong or raise are left out, and so is a baseline that runs out of memory.
    """
    truth = case.truth()
    errors, left_out = {}, dict(case.skipped)
    for name, way in case.ways.items():
        try:
            results = (way.check or way.call)()
        except Exception as error:  # packages and compilers raise any type
            if is_own(name) or (name == case.baseline and not isinstance(error, torch.OutOfMemoryError)):
                raise
            left_out[name] = _reason(error)
        else:
            wanted = truth if way.truth is None else way.truth()
            errors[name] = max(relative_error(y, want.detach()) for y, want in zip(results, wanted, strict=True))
            del results, wanted
    allowed = min(case.budget, case.factor * errors.get(case.baseline, math.inf))
    for name, error in list(errors.items()):
        limit = allowed if is_own(name) else case.budget
        if error <= limit:
            continue
        if is_own(name) or name == case.baseline:
            raise WrongResultError(
                f"{case.entry.title}: {name} has relative error {error:.1e}, the limit is {limit:.1e}"
            )
        left_out[name] = f"relative error {errors.pop(name):.1e}"
    return Verdict(errors, left_out)


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:100]}"


def relative_error(got: Tensor, want: Tensor) -> float:
    """Return ``‖got − want‖ / ‖want‖``, the absolute error if ``want`` is zero, infinity for NaN or another shape."""
    if got.shape != want.shape:
        return math.inf
    difference = (got.detach().double() - want).norm()
    error = float(difference / want.norm() if want.any() else difference)
    return math.inf if math.isnan(error) else error
