"""Random solves of an ODE and conversions between parametrisations."""

from itertools import pairwise

import torch
from torch import Tensor

import fastflow as ff

from .call import Call
from .draw import Draw
from .flow_step import DTYPES, FORMULAS


def draw_solve(draw: Draw, backend: str) -> Call:
    dtype = draw.one(DTYPES)
    batch, size = draw.integer(1, 3), draw.integer(1, 5)
    solver, steps = draw.one(["euler", "midpoint", "heun", "rk4"]), draw.integer(1, 5)
    start, stop = draw.one([(0.0, 1.0), (1.0, 0.0), (0.2, 0.7)])
    x = [draw.strided(draw.normal(batch, size, dtype=dtype)), draw.normal(size, size, dtype=dtype)]

    def ours(x: Tensor, A: Tensor) -> Tensor:
        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x @ A.T) * (1 + t[:, None].to(x.dtype))

        return ff.sample_ode(velocity, x, num_steps=steps, solver=solver, t0=start, t1=stop)

    def plain(x: Tensor, A: Tensor) -> Tensor:
        own, times = x.dtype, torch.linspace(start, stop, steps + 1, dtype=torch.float64).tolist()

        def v(x: Tensor, t: float) -> Tensor:
            return torch.tanh(x.to(own) @ A.T) * (1 + t)

        x = x.to(torch.promote_types(own, torch.float32))
        for t, s in pairwise(times):
            h, k1 = s - t, v(x, t)
            if solver == "euler":
                x = x + h * k1
            elif solver == "midpoint":
                x = x + h * v(x + h / 2 * k1, t + h / 2)
            elif solver == "heun":
                x = x + h / 2 * (k1 + v(x + h * k1, s))
            else:
                k2 = v(x + h / 2 * k1, t + h / 2)
                k3 = v(x + h / 2 * k2, t + h / 2)
                x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + v(x + h * k3, s))
        return x.to(own)

    return Call(f"solve {(batch, size)} {dtype} {solver} {steps} steps from {start} to {stop}", ours, plain, x)


def draw_conversion(draw: Draw, backend: str) -> Call:
    path, formula = draw.one([pair for pair in FORMULAS if pair[1](torch.tensor(0.5))[0][2] == 0.0])
    dtype = draw.one([torch.float64, torch.float64, torch.float32])
    shape = (draw.integer(1, 3), *draw.one([(), (3,), (2, 3)]))
    source, target = draw.one(["velocity", "x1", "noise", "score"]), draw.one(["velocity", "x1", "noise", "score"])
    t = (0.1 + 0.8 * draw.unit(shape[0])).to(dtype)

    def plain(value: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        (a, b, _), (da, db, _) = formula(t.reshape(-1, *(1,) * (len(shape) - 1)))
        if source == target:
            return value
        if source == "velocity":
            x0 = (da * xt - a * value) / (da * b - a * db)
        elif source == "x1":
            x0 = (xt - a * value) / b
        else:
            x0 = value if source == "noise" else -b * value
        if target == "noise":
            return x0
        if target == "score":
            return -x0 / b
        x1 = value if source == "x1" else (xt - b * x0) / a
        return x1 if target == "x1" else da * x1 + db * x0

    def ours(value: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return ff.paths.convert(value, xt, t, path=path, source=source, target=target)

    x = [draw.strided(draw.normal(*shape, dtype=dtype)), draw.normal(*shape, dtype=dtype), t]
    return Call(f"convert {source} to {target} {path} {shape} {dtype}", ours, plain, x)
