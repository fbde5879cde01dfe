"""A case: several ways to compute one thing. Each must agree with float64 at the timed shape before it is timed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

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
    floor: the FLOPs and bytes that no implementation can avoid. note: a remark for the report: why it is slower, say.
    skipped: implementations that cannot take part, with the reason: out of memory, not installed.
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

    @property
    def baseline(self) -> str:
        return next(iter(self.ways))

    @property
    def title(self) -> str:
        return f"{self.op}, {self.mode}, {list(self.shape)}, {str(self.dtype).removeprefix('torch.')}"


class WrongResultError(AssertionError):
    """A way disagrees with float64: it is not timed."""


def verify(case: Case) -> dict[str, float]:
    """The largest relative error of each way against float64; raises WrongResultError above the budget."""
    truth = [y.detach() for y in case.truth()]
    errors = {name: max(map(relative_error, (way.check or way.call)(), truth)) for name, way in case.ways.items()}
    wrong = {name: error for name, error in errors.items() if not error <= case.budget}  # NaN is wrong
    if wrong:
        raise WrongResultError(f"{case.title}: relative errors {wrong} exceed {case.budget:.1e}")
    return errors


def relative_error(got: Tensor, want: Tensor) -> float:
    """The L2 norm of the difference, by that of the truth; an absolute one where the truth is zero."""
    if got.shape != want.shape:
        return float("nan")
    difference = (got.detach().double() - want).norm()
    return float(difference / want.norm() if want.any() else difference)
