"""Kernel launchers on one input each, with the results in float64 and PyTorch's in the same dtype."""

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fastflow as ff
from bench.harness.accuracy import share_of_budget
from bench.harness.block_ops import BLOCK_OPS, KERNEL_OPS, BlockProblem, Mode, Sizes
from bench.harness.checks import Finding, Setting
from bench.harness.problems import Problem, oracle
from bench.harness.pytorch_ops import reference_of
from bench.harness.rows import dtype_name
from fastflow.kernels.attention import backward, forward
from fastflow.kernels.divergence import probes, reduce
from fastflow.kernels.divergence import reference as divergence_reference
from fastflow.kernels.flow_step import interpolate, loss
from fastflow.kernels.flow_step._launch import Terms
from fastflow.kernels.noise import gaussian
from fastflow.kernels.noise import reference as noise_reference

Tensors = dict[str, Tensor]

VALUES, DERIVATIVES = 2.0, 3.0  # allowed error over that of PyTorch
STREAM = (5, 1 << 34)
FIRST_SAMPLE = 3


@dataclass(frozen=True)
class Subject:
    """A launcher on one input.

    kernels: compute the results by name. expected: compute the same with PyTorch in a given dtype.
    factor: the allowed error over that of PyTorch.
    """

    name: str
    dtype: torch.dtype
    kernels: Callable[[], Tensors]
    expected: Callable[[torch.dtype], Tensors]
    factor: float

    def findings(self) -> list[Finding]:
        """Return the used share of the error budget of each result."""
        truth, baseline = self.expected(torch.float64), self.expected(self.dtype)
        return [
            Finding(f"{self.name} {key}", share_of_budget(x, truth[key], baseline[key], self.factor))
            for key, x in self.kernels().items()
        ]


def dtypes(setting: Setting) -> tuple[torch.dtype, ...]:
    return (
        torch.float32,
        torch.float16,
        *(() if setting.dry else (torch.bfloat16,)),
    )  # the interpreter breaks bfloat16


def attention_forward(setting: Setting, dtype: torch.dtype, **fields: Any) -> Subject:
    """The forward kernel's out and t_out. fields: of ``problems.Problem``."""
    problem = functools.cache(lambda: attention_problem(setting, dtype, **fields))

    def kernels() -> Tensors:
        x = problem()
        out, t_out, *_ = forward.dual_forward(*x.primals, *x.ts, x.mask_tensor, **x.arguments())
        return {"out": out} | ({} if t_out is None else {"t_out": t_out})

    def expected(dtype: torch.dtype) -> Tensors:
        return dict(zip(("out", "t_out"), oracle(problem(), dtype)[0]))

    return Subject(_title("attention forward", dtype, fields), dtype, kernels, expected, VALUES)


def attention_backward(setting: Setting, dtype: torch.dtype, **fields: Any) -> Subject:
    """The requested gradients of ``⟨g, out⟩ + ⟨h, t_out⟩``. fields: of ``problems.Problem``."""
    problem = functools.cache(lambda: attention_problem(setting, dtype, **fields))
    names = ("dq", "dk", "dv", "dtq", "dtk", "dtv")

    def kernels() -> Tensors:
        x = problem()
        saved = forward.dual_forward(*x.primals, *x.ts, x.mask_tensor, **x.arguments())
        grads = backward.dual_backward(x.G, x.H, *x.primals, *x.ts, x.mask_tensor, *saved, **x.arguments())
        return {name: d for name, d in zip(names, grads) if d is not None}

    def expected(dtype: torch.dtype) -> Tensors:
        return dict(zip(names, oracle(problem(), dtype)[1]))

    return Subject(_title("attention backward", dtype, fields), dtype, kernels, expected, DERIVATIVES)


def attention_problem(setting: Setting, dtype: torch.dtype, **fields: Any) -> Problem:
    """A problem of several tiles and a tail in each direction. fields: of ``problems.Problem``; width sets D and Dv."""
    sizes = {"Nq": 17, "Nk": 33} if setting.dry else {"B": 2, "Hq": 4, "Hk": 4, "Nq": 193, "Nk": 321}
    width = fields.pop("width", 16)
    return Problem(**(sizes | {"D": width, "Dv": width} | fields), dtype=dtype, device=setting.device)


def flow_step(setting: Setting, dtype: torch.dtype, *, drawn: bool, row_size: int = 45) -> Subject:
    """The point on the path, the squared errors and their gradient, for a path with three terms."""
    shape = (3 if setting.dry else 257, row_size)

    @functools.cache
    def operands() -> tuple[list[Tensor], list[Tensor], Tensor]:
        generator = torch.Generator().manual_seed(0)
        xs = [torch.randn(shape, generator=generator).to(setting.device, dtype) for _ in range(4)]
        cs = [torch.randn(shape[0], generator=generator).to(setting.device) for _ in range(3)]
        return xs, cs, torch.randn(shape[0], generator=generator).to(setting.device)

    def kernels() -> Tensors:
        (x1, x0, z, pred), cs, grad = operands()
        terms = Terms(x1, x0, None, *cs, (), (*STREAM, FIRST_SAMPLE)) if drawn else Terms(x1, x0, z, *cs)
        return {
            "xt": interpolate.interpolate(terms, dtype),
            "energy": loss.squared_error(pred, terms),
            "gradient": loss.squared_error_backward(grad, pred, terms),
        }

    def expected(dtype: torch.dtype) -> Tensors:
        (x1, x0, z, pred), cs, grad = operands()
        if drawn:
            z = gaussian.gaussian(z.numel(), *STREAM, torch.float32, z.device, FIRST_SAMPLE * row_size).view(shape)
        xs, rows = [x.to(dtype) for x in (x1, x0, z)], [c.to(dtype)[:, None] for c in cs]
        xt = sum(c * x for c, x in zip(rows, xs))
        error = pred.to(dtype) - xt
        wide = error.to(torch.promote_types(dtype, torch.float32))  # the dtype of the returned energy
        return {"xt": xt, "energy": wide.square().sum(1), "gradient": 2 * grad.to(dtype)[:, None] * error}

    return Subject(_title("flow step", dtype, {"drawn": drawn, "row_size": row_size}), dtype, kernels, expected, VALUES)


def divergence(setting: Setting, dtype: torch.dtype, *, distribution: str) -> Subject:
    """Probes, their dot products with the Jacobian products, and the adjoint of these."""
    shape = (3, 5, 77) if setting.dry else (16, 65, 4099)

    @functools.cache
    def operands() -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        products, c = (torch.randn(s, generator=generator).to(setting.device) for s in (shape, shape[:2]))
        drawn = divergence_reference.probes(shape, *STREAM, 1, distribution)
        return products.to(dtype), c, drawn.to(setting.device)

    def kernels() -> Tensors:
        products, c, _ = operands()
        draw = (*STREAM, 1, distribution)
        return {
            "probes": probes.probes(shape, *draw, dtype, setting.device),
            "dots": reduce.dots(products, *draw, dtype),
            "scaled": probes.probes(shape, *draw, dtype, setting.device, c, dtype),
        }

    def expected(dtype_: torch.dtype) -> Tensors:
        products, c, drawn = operands()
        rounded, products = drawn.to(dtype).to(dtype_), products.to(dtype_)
        return {
            "probes": drawn.to(dtype_),
            "dots": (products * rounded).sum(2),
            "scaled": c.to(dtype_)[..., None] * rounded,
        }

    return Subject(_title(f"divergence {distribution}", dtype, {}), dtype, kernels, expected, VALUES)


def block_op(setting: Setting, dtype: torch.dtype, name: str, mode: Mode, width: int) -> Subject:
    """An op of a Transformer block in a mode, on its kernels. width: D; long rows come in small numbers."""
    op = BLOCK_OPS[name]
    tokens = 5 if setting.dry else max(3, min(193, (1 << 16) // width))
    problem = functools.cache(lambda: BlockProblem.draw(op, Sizes(2, tokens, width, 1), dtype, setting.device))
    own = functools.partial(getattr(ff, op.function), **({} if name == "linear" else {"backend": "triton"}))

    def named(p: BlockProblem, results: Sequence[Tensor]) -> Tensors:
        return {f"{key} {n}": x for n, (key, x) in enumerate(zip(p.names(mode), results, strict=True))}

    def expected(dtype: torch.dtype) -> Tensors:
        p = problem().to(dtype)
        return named(p, p.run(mode, reference_of(op.function)))

    title = _title(f"{name} {mode}", dtype, {"width": width})
    factor = VALUES if mode in ("forward", "jvp") else DERIVATIVES
    return Subject(title, dtype, lambda: named(problem(), problem().run(mode, own)), expected, factor)


def normals(setting: Setting, dtype: torch.dtype) -> Subject:
    numel = 1001 if setting.dry else 1_000_003
    drawn = functools.cache(lambda: noise_reference.gaussian(numel, *STREAM, FIRST_SAMPLE).to(setting.device))
    return Subject(
        _title("noise", dtype, {}),
        dtype,
        lambda: {"normals": gaussian.gaussian(numel, *STREAM, dtype, setting.device, FIRST_SAMPLE)},
        lambda dtype: {"normals": drawn().to(dtype)},
        VALUES,
    )


def every_launcher(setting: Setting, dtype: torch.dtype, width: int = 64) -> Iterator[Subject]:
    """Yield subjects that together launch each kernel at least once."""
    several = {"K": 2 if setting.dry else 3}
    for fields in ({"tangents": ""}, {}, several):
        yield attention_forward(setting, dtype, width=width, **fields)
    for fields in ({"h": False}, {}, several):
        yield attention_backward(setting, dtype, width=width, **fields)
    for drawn in (False, True):
        yield flow_step(setting, dtype, drawn=drawn)
    for distribution in ("rademacher", "gaussian"):
        yield divergence(setting, dtype, distribution=distribution)
    yield normals(setting, dtype)
    for name, mode in itertools.product(KERNEL_OPS, ("joint", "many")):
        yield block_op(setting, dtype, name, mode, width)


def _title(name: str, dtype: torch.dtype, fields: Mapping[str, Any]) -> str:
    return " ".join([name, dtype_name(dtype), *(f"{k}={v}" for k, v in fields.items())])
