"""One random call: an op, the same in plain PyTorch, and the tensors at which both are differentiated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from tests.modes import MODES, Problem

from .draw import Draw

# the Hessians of tests.modes need two arguments of one size, and Jacobians cost many calls
SELECTED = [
    name for name in MODES if "hessian" not in name and "jacobian" not in name and name != "vmap_of_one_argument"
]


@dataclass
class Call:
    """An op at a point.

    op: of the tensors x. plain: the same formula in PyTorch's own ops, computed in the dtype of its arguments.
    refused: beginnings of the names of modes that the op refuses with an error.
    """

    name: str
    op: Callable[..., Tensor]
    plain: Callable[..., Tensor]
    x: Sequence[Tensor]
    refused: tuple[str, ...] = ()

    @property
    def modes(self) -> list[str]:
        return [name for name in SELECTED if not name.startswith(self.refused)]


def problem(draw: Draw, call: Call, active: Sequence[int], num: int = 2) -> Problem:
    """Draw tangents and weights for the active arguments of a call."""
    x = [call.x[i] for i in active]
    shape = call.plain(*(y.double() for y in call.x)).shape
    t = [draw.normal(*y.shape, dtype=y.dtype) for y in x]
    ts = [draw.normal(num, *y.shape, dtype=y.dtype) for y in x]
    xs = [(y * (1.0 + 0.1 * (draw.unit(num, *y.shape) - 0.5))).to(y.dtype) for y in x]
    dtype = call.plain(*call.x).dtype
    return Problem(x, t, ts, xs, draw.normal(*shape, dtype=dtype), draw.normal(num, *shape, dtype=dtype), square=0.1)


def restricted(function: Callable[..., Tensor], x: Sequence[Tensor], active: Sequence[int]) -> Callable[..., Tensor]:
    """Return the function of the active arguments alone, the others held at x."""

    def inner(*given: Tensor) -> Tensor:
        arguments = list(x)
        for i, y in zip(active, given):
            arguments[i] = y
        return function(*arguments)

    return inner


def widened(p: Problem) -> Problem:
    parts = ([y.double() for y in group] for group in (p.x, p.t, p.ts, p.xs))
    return Problem(*parts, p.w.double(), p.ws.double(), p.square)
