"""Random calls of the flow step, against the paths' formulas written out."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

import fastflow as ff
from fastflow import paths

from .call import Call
from .draw import Draw

DTYPES = [torch.float64, torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16]
Coefficients = tuple[Tensor | float, Tensor | float, Tensor | float]
Formula = Callable[[Tensor], tuple[Coefficients, Coefficients]]


def _variance_preserving(t: Tensor, low: float = 0.1, high: float = 20.0) -> tuple[Coefficients, Coefficients]:
    s = 1 - t
    total, rate = 0.5 * s * s * (high - low) + s * low, low + s * (high - low)
    decay, beta = torch.exp(-0.5 * total), torch.sqrt(1 - torch.exp(-total))
    return (decay, beta, 0.0), (0.5 * rate * decay, -0.5 * rate * torch.exp(-total) / beta, 0.0)


# position (alpha, beta, gamma) and velocity, on 0.1 <= t <= 0.9
FORMULAS: list[tuple[paths.Path, Formula]] = [
    (paths.CondOT(), lambda t: ((t, 1 - t, 0.0), (1.0, -1.0, 0.0))),
    (paths.SigmaMin(0.1), lambda t: ((t, 1 - 0.9 * t, 0.0), (1.0, -0.9, 0.0))),
    (
        paths.Cosine(),
        lambda t: (
            (torch.sin(math.pi / 2 * t), torch.cos(math.pi / 2 * t), 0.0),
            (math.pi / 2 * torch.cos(math.pi / 2 * t), -math.pi / 2 * torch.sin(math.pi / 2 * t), 0.0),
        ),
    ),
    (paths.Polynomial(2.5), lambda t: ((t**2.5, 1 - t**2.5, 0.0), (2.5 * t**1.5, -2.5 * t**1.5, 0.0))),
    (paths.VP(), _variance_preserving),
    (paths.LinearVP(), lambda t: ((t, torch.sqrt(1 - t * t), 0.0), (1.0, -t / torch.sqrt(1 - t * t), 0.0))),
    (paths.Tube(0.3), lambda t: ((t, 1 - t, 0.3), (1.0, -1.0, 0.0))),
    (
        paths.SchrodingerBridge(0.5),
        lambda t: (
            (t, 1 - t, 0.5 * torch.sqrt(t * (1 - t))),
            (1.0, -1.0, 0.25 * (1 - 2 * t) / torch.sqrt(t * (1 - t))),
        ),
    ),
]
MAPPED = ("vmap", "grad_of_vmap", "jvp_of_vmap")  # drawn noise belongs to a batch: there is no vmap over samples


def draw_flow_step(draw: Draw, backend: str) -> Call:
    op = draw.one(["interpolate", "target_velocity", "loss", "loss"])
    path, formula = draw.one(FORMULAS)
    dtype = draw.one([torch.float32, torch.float16] if backend == "triton" else DTYPES)
    shape = (draw.integer(1, 4), *draw.one([(), (1,), (3,), (7,), (2, 3), (3, 2, 2), (16, 17)]))
    time_dtype = draw.one([dtype, torch.float32]) if dtype.itemsize < 4 else dtype
    t = draw.one([(0.1 + 0.8 * draw.unit(shape[0])), 0.1 + 0.8 * draw.unit()]).to(time_dtype)
    bridge = formula(torch.tensor(0.5))[0][2] != 0.0
    x = [t, *(draw.strided(draw.normal(*shape, dtype=dtype)) for _ in range(2 + bridge + (op == "loss")))]
    drawn = None
    if draw.chance(0.4):
        drawn = ff.GaussianNoise(draw.integer(0, 2**40), draw.integer(0, 2**40))
        x.pop(2)
    options: dict[str, object] = {}
    weighted = op == "loss" and draw.chance(0.4)
    if op == "loss":
        options["reduction"] = draw.one(["mean", "sum", "none"])
    if weighted:
        x.append(draw.unit(shape[0], dtype=draw.one([dtype, torch.float32])))

    def parts(tensors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, object, dict[str, Tensor], Tensor | None]:
        t, x1, *rest = tensors
        x0 = drawn or rest.pop(0)
        noise = {"noise": rest.pop(0)} if bridge else {}
        weight = {"weight": rest.pop()} if weighted else {}
        return t, x1, x0, {**noise, **weight}, rest[0] if rest else None

    def ours(*tensors: Tensor) -> Tensor:
        t, x1, x0, keywords, pred = parts(tensors)
        if op == "interpolate":
            return ff.interpolate(x0, x1, t, path=path, backend=backend, **keywords)
        if op == "target_velocity":
            return ff.target_velocity(x0, x1, t, path=path, **keywords)
        return ff.flow_matching_loss(pred, x0, x1, t, path=path, backend=backend, **options, **keywords)

    def plain(*tensors: Tensor) -> Tensor:
        t, x1, x0, keywords, pred = parts(tensors)
        if drawn:
            x0 = drawn.materialize(shape, dtype=x1.dtype)
        wide = torch.promote_types(x1.dtype, torch.float32)
        rows = t.to(wide).reshape(-1, *(1,) * (len(shape) - 1))
        a, b, c = formula(rows)[op != "interpolate"]
        out = a * x1.to(wide) + b * x0.to(wide)
        if bridge and not (isinstance(c, float) and c == 0.0):
            out = out + c * keywords["noise"].to(wide)
        if op != "loss":
            return out.to(x1.dtype)
        error = (pred.to(wide) - out).square().reshape(shape[0], -1)
        if weighted:
            error = error * keywords["weight"][:, None]
        return {"mean": error.mean(), "sum": error.sum(), "none": error.mean(1)}[options["reduction"]]

    name = f"{op} {path} {shape} {dtype} t {tuple(t.shape)} {time_dtype} drawn {drawn} weighted {weighted} {options}"
    return Call(name, ours, plain, x, MAPPED if drawn else ())
