"""Fixed-step integration of dx/dt = v(x, t)."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from .._checks import (
    check_choice,
    check_count,
    check_dense,
    check_number,
    check_recording,
    check_value,
    is_differentiated,
)
from .._dtypes import at_least_float32

Velocity = Callable[[Tensor, Tensor], Tensor]
Solver = Literal["euler", "midpoint", "heun", "rk4"]


def integrate(
    velocity: Velocity,
    x0: Tensor,
    times: Sequence[float],
    *,
    solver: Solver,
    return_trajectory: bool = False,
) -> Tensor:
    """Integrate ``dx/dt = v(x, t)`` from x0 at the first of the times to the last; see :func:`fastflow.sample_ode`.

    The state is kept at least in fp32: steps smaller than half a unit in the last place of x0's dtype would be lost.
    """
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        raise TypeError(f"x0 must be a floating-point tensor, got {x0.dtype if isinstance(x0, Tensor) else type(x0)}")
    check_dense("x0", x0)
    check_recording()
    if x0.ndim == 0:
        raise ValueError("x0 must be [B, ...], got a scalar")
    check_choice("solver", solver, Solver)
    dtype = at_least_float32(x0)

    def field(x: Tensor, t: float) -> Tensor:
        return evaluate(velocity, x.to(x0.dtype), torch.full(x0.shape[:1], t, dtype=dtype, device=x0.device)).to(dtype)

    step, x, trajectory = _STEPS[solver], x0.to(dtype), [x0]
    for start, stop in pairwise(times):
        x = step(field, x, start, stop)
        if return_trajectory:
            trajectory.append(x.to(x0.dtype))
    return torch.stack(trajectory) if return_trajectory else x.to(x0.dtype)


def evaluate(velocity: Velocity, x: Tensor, t: Tensor) -> Tensor:
    """Return ``velocity(x, t)``; raise unless it is a floating-point tensor with the shape and the device of x."""
    return check_value("velocity", velocity(x, t), x)


def step_times(num_steps: int | None, t0: float, t1: float, time_grid: Tensor | None = None) -> list[float]:
    """Return the times of num_steps equal steps from t0 to t1, or those of the grid.

    Raises:
        TypeError: num_steps is not an int, t0 or t1 not a number, or time_grid not a tensor of real numbers.
        ValueError: both or neither of num_steps and time_grid, no step, a time that is not finite, or a grid that is
            not strictly monotone or is being differentiated.
    """
    if (num_steps is None) == (time_grid is None):
        raise ValueError("give either num_steps or time_grid")
    if num_steps is not None:
        num_steps, t0, t1 = check_count("num_steps", num_steps), check_number("t0", t0), check_number("t1", t1)
        return [t0 + (t1 - t0) * k / num_steps for k in range(num_steps)] + [t1]
    assert time_grid is not None
    if not isinstance(time_grid, Tensor) or time_grid.is_complex():
        raise TypeError(f"time_grid must be a tensor of real numbers, got {type(time_grid).__name__}")
    if time_grid.ndim != 1 or len(time_grid) < 2:
        raise ValueError(f"time_grid must be [num_steps + 1] with at least two times, got {tuple(time_grid.shape)}")
    times = time_grid.tolist()
    signs = {(b > a) - (b < a) for a, b in pairwise(times)}
    if signs not in ({1}, {-1}) or not all(map(math.isfinite, times)):
        raise ValueError(f"time_grid must be strictly monotone and finite, got {times}")
    if is_differentiated(time_grid):
        raise ValueError("time_grid must not be differentiated: its times are read as numbers; detach it")
    return times


_Field = Callable[[Tensor, float], Tensor]


def _euler(v: _Field, x: Tensor, t: float, s: float) -> Tensor:
    return x + (s - t) * v(x, t)


def _midpoint(v: _Field, x: Tensor, t: float, s: float) -> Tensor:
    half = 0.5 * (s - t)
    return x + 2.0 * half * v(x + half * v(x, t), t + half)


def _heun(v: _Field, x: Tensor, t: float, s: float) -> Tensor:
    h = s - t
    k1 = v(x, t)
    k2 = v(x + h * k1, s)
    return x + 0.5 * h * (k1 + k2)


def _rk4(v: _Field, x: Tensor, t: float, s: float) -> Tensor:
    h = s - t
    k1 = v(x, t)
    k2 = v(x + 0.5 * h * k1, t + 0.5 * h)
    k3 = v(x + 0.5 * h * k2, t + 0.5 * h)
    k4 = v(x + h * k3, s)
    return x + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + k4)


_STEPS: dict[Solver, Callable[[_Field, Tensor, float, float], Tensor]] = {
    "euler": _euler,
    "midpoint": _midpoint,
    "heun": _heun,
    "rk4": _rk4,
}
