"""The density of a flow, by the instantaneous change of variables along its trajectories."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .._checks import check_batched, check_choice, check_number, check_returned
from .._dtypes import at_least_float32
from ..ops.divergence.estimators import estimate, mean_and_stderr, num_samples
from ..ops.divergence.options import DivergenceOptions, collect, shows_options
from .adaptive import dopri5
from .ode import Solver, Velocity, evaluate, integrate, step_times

LikelihoodSolver = Literal[Solver, "dopri5"]


@dataclass(frozen=True)
class Likelihood:
    """The result of :func:`log_likelihood`.

    Args:
        log_prob: ``log p1(x1)`` in nats, ``[B]``.
        x0: start of each trajectory, the shape of x1.
        stderr: standard error of log_prob over the probes, ``[B]``, or None for one probe and for the exact trace.
    """

    log_prob: Tensor
    x0: Tensor
    stderr: Tensor | None

    def bits_per_dim(self, scale: float = 1.0) -> Tensor:
        """Return ``−log2 p / D + log2 scale``, ``[B]``, for data y = scale · x1 + shift with D numbers a sample.

        For dequantised 8-bit images that the model sees in [−1, 1], scale is 127.5.

        Raises:
            ValueError: scale is not positive.
        """
        if not scale > 0.0:
            raise ValueError(f"scale must be positive, got {scale}")
        return -self.log_prob / (self.x0.shape[1:].numel() * math.log(2.0)) + math.log2(scale)


@shows_options
def log_likelihood(
    velocity: Velocity,
    x1: Tensor,
    options: DivergenceOptions | None = None,
    *,
    num_steps: int = 100,
    solver: LikelihoodSolver = "heun",
    log_p0: Callable[[Tensor], Tensor] | None = None,
    t0: float = 0.0,
    t1: float = 1.0,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    **keywords: Any,
) -> Likelihood:
    """Compute the log-density of data under a flow, ``log p1(x1) = log p0(x0) − ∫ div v(x_t, t) dt``, t from 0 to 1.

    The point and its density are integrated backward in time together, with the same probes at every step.
    Differentiable, at the memory cost of every step: wrap the call in ``torch.no_grad()`` to evaluate.

    Args:
        velocity: ``velocity(x, t)`` with x like x1 and t ``[B]``; the samples of a batch must not interact.
        x1: data in the model's own scale, ``[B, ...]``, floating point.
        options, keywords: how to estimate the divergence, as for :func:`fastflow.divergence`.
        num_steps: equal steps of a fixed-step solver; "dopri5" chooses its own.
        solver: "euler", "midpoint", "heun", "rk4" as in :func:`fastflow.sample_ode`, or "dopri5", adaptive, from
            torchdiffeq.
        log_p0: log-density of the source, ``[B, ...]`` to ``[B]``; by default the standard normal's.
        t0, t1: ends of the flow. Where a path's velocity is singular at an end, use ``path.domain``.
        rtol, atol: tolerances of "dopri5".

    Returns:
        :class:`Likelihood`, at least in fp32.

    Raises:
        ModuleNotFoundError: "dopri5", and torchdiffeq is not installed.
        TypeError, ValueError, RuntimeError: as :func:`fastflow.divergence` and :func:`fastflow.sample_ode`; log_p0 does
            not return ``[B]``; a tolerance is negative, or both are 0.
        fastflow.sampling.IntegrationError: "dopri5" cannot go on: velocity or divergence is not finite, the step became
            too small, or 10,000 steps were not enough. The fixed-step solvers return NaN there.

    Source: Chen et al., 1806.07366, theorem 1; with fixed probes, Grathwohl et al., 1810.01367, eq. 8.
    """
    check_batched("x1", x1)
    check_choice("solver", solver, LikelihoodSolver)
    t0, t1 = check_number("t0", t0), check_number("t1", t1)
    options = collect("log_likelihood", options, keywords)
    num, size = x1.shape[0], x1.shape[1:].numel()
    dtype = at_least_float32(x1)

    def field(state: Tensor, t: Tensor) -> Tensor:
        x = state[:, :size].reshape(x1.shape).to(x1.dtype)
        value, samples = estimate(lambda x: evaluate(velocity, x, t), x, options)
        return torch.cat((value.reshape(num, size).to(dtype), samples.mT.to(dtype)), dim=1)

    # The state is [B, M + S]: the point, and for each of S estimates the integral of div v from t1 back to the time.
    start = torch.cat((x1.reshape(num, size).to(dtype), x1.new_zeros((num, num_samples(options, x1)), dtype=dtype)), 1)
    if solver == "dopri5":
        end = dopri5(field, start, t1, t0, rtol, atol)
    else:
        end = integrate(field, start, step_times(num_steps, t1, t0), solver=solver)
    x0, change = end[:, :size].reshape(x1.shape), end[:, size:].mT
    source = check_returned("log_p0", (log_p0 or _standard_normal)(x0), x0.shape[:1], "[B]", x0.device)
    log_prob, stderr = mean_and_stderr(source + change)
    return Likelihood(log_prob, x0, stderr)


def _standard_normal(x: Tensor) -> Tensor:
    """Return ``log N(x; 0, I)``, ``[B]``."""
    size = x.shape[1:].numel()
    return -0.5 * (x.reshape(x.shape[0], size).square().sum(1) + size * math.log(2.0 * math.pi))
