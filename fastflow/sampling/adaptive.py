"""Adaptive integration by torchdiffeq, ended with a clear error where it cannot go on."""

import importlib
from collections import deque

import torch
from torch import Tensor

from .._checks import check_number
from .ode import Velocity

_MOST_STEPS = 10_000
_EVALUATIONS = 6  # of a step


class IntegrationError(RuntimeError):
    """Raised if an adaptive solver cannot reach the end: the message names the time and the cause."""


def dopri5(field: Velocity, state: Tensor, t0: float, t1: float, rtol: float, atol: float) -> Tensor:
    """Return the state at t1 by adaptive Dormand-Prince steps, the same for all samples.

    Raises:
        IntegrationError: field is not finite, the step became too small, or 10,000 steps were not enough.
        ModuleNotFoundError: torchdiffeq is not installed.
        ValueError: a negative tolerance, or both are 0.
    """
    rtol, atol = check_number("rtol", rtol), check_number("atol", atol)
    if min(rtol, atol) < 0.0 or max(rtol, atol) == 0.0:
        raise ValueError(f"rtol and atol must not be negative, nor both 0, got {rtol} and {atol}")
    try:
        odeint = importlib.import_module("torchdiffeq").odeint
    except ModuleNotFoundError as error:
        if error.name != "torchdiffeq":
            raise
        raise ModuleNotFoundError(
            "torchdiffeq is not installed; solver 'dopri5' needs it: pip install 'fastflow[ode]'", name="torchdiffeq"
        ) from None
    if t0 == t1 or not state.numel():
        return state
    times = torch.tensor((t0, t1), dtype=torch.float64, device=state.device)
    options = {"step_t": times[1:]}  # stop at t1: the field may not be defined beyond it
    return odeint(_Watched(field, t0, t1), state, times, rtol=rtol, atol=atol, method="dopri5", options=options)[-1]


class _Watched:
    """A field with torchdiffeq's order of arguments, and a callback that raises where torchdiffeq cannot go on."""

    def __init__(self, field: Velocity, t0: float, t1: float) -> None:
        self.field, self.ends = field, sorted((t0, t1))
        self.steps = 0
        self.recent: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=_EVALUATIONS)

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        # the guess of the first step looks at a time that may lie outside, or be NaN
        t = t.clamp(*self.ends).nan_to_num(nan=self.ends[0])
        value = self.field(state, t.expand(len(state)))
        self.recent.append((t, state.detach(), value.detach()))
        return value

    def callback_step(self, t: Tensor, state: Tensor, step: Tensor) -> None:
        """Raise if this step, which torchdiffeq is about to take, is too small or one too many."""
        self.steps += 1
        if self.steps <= _MOST_STEPS and bool((t + step > t) & (t - step < t)):
            return
        for seen, point, value in self.recent:
            if bool(point.isfinite().all()) and not bool(value.isfinite().all()):
                raise _error(seen, "the velocity or its divergence is not finite there")
        if self.steps > _MOST_STEPS:
            raise _error(t, f"{_MOST_STEPS} steps did not reach the end; loosen rtol and atol")
        raise _error(
            t,
            "no step is small enough for rtol and atol; loosen them, or let t0 and t1 stop short of the time at which "
            "the velocity is singular",
        )


def _error(t: Tensor, cause: str) -> IntegrationError:
    return IntegrationError(f"solver 'dopri5' cannot go on at t = {t.item():.6g}: {cause}")
