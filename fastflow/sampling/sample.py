"""Sampling by integrating a velocity, guided toward the modes on request."""

from collections.abc import Callable

from torch import Tensor

from .guidance import mode_seeking
from .ode import Solver, Velocity, integrate, step_times


def sample_ode(
    velocity: Velocity,
    x0: Tensor,
    *,
    num_steps: int | None = None,
    solver: Solver = "heun",
    t0: float = 0.0,
    t1: float = 1.0,
    time_grid: Tensor | None = None,
    return_trajectory: bool = False,
    mode_guidance: float | Callable[[Tensor], Tensor] = 0.0,
) -> Tensor:
    """Integrate ``dx/dt = v(x, t)`` from x0 at t0 to t1 in fixed steps.

    With t0 = 1 and t1 = 0 it takes data to noise. Differentiable, at the memory cost of every step: wrap the call in
    ``torch.no_grad()`` to sample. The state is kept at least in fp32, so that small steps are not lost, and rounded to
    x0's dtype for the velocity and for the result. A velocity that is not finite makes its samples NaN; nothing raises.

    Args:
        velocity: ``velocity(x, t)`` with x like x0 and t ``[B]``, at least in fp32; returns the shape of x.
        x0: start, ``[B, ...]``, floating point.
        num_steps: number of equal steps; not with time_grid.
        solver: "euler" (order 1; one evaluation a step), "midpoint" (2; two), "heun" (2; two) or "rk4" (4; four).
        t0: time of x0.
        t1: time of the result. Where a path's velocity is singular at an end, stop inside ``path.domain``.
        time_grid: ``[num_steps + 1]`` strictly monotone times in place of num_steps, t0 and t1; not differentiated.
        return_trajectory: return the states at every time of the grid instead of the last one.
        mode_guidance: weight w of :func:`fastflow.sampling.mode_seeking`, applied to the velocity with one probe.

    Returns:
        The state at t1, shape and dtype of x0; with return_trajectory ``[num_steps + 1, B, ...]``, x0 first.

    Raises:
        TypeError: x0 or what velocity returns is not a floating-point tensor; num_steps is not an int, or a time not a
            number.
        ValueError: velocity returns another shape or device than x's; the grid is not monotone, not finite or not
            one-dimensional, both or neither of num_steps and time_grid are given, num_steps < 1, or the solver is
            unknown.
        RuntimeError: with mode_guidance, velocity returns a value without a graph, as :func:`fastflow.divergence`.
    """
    return integrate(
        mode_seeking(velocity, mode_guidance),
        x0,
        step_times(num_steps, t0, t1, time_grid),
        solver=solver,
        return_trajectory=return_trajectory,
    )
