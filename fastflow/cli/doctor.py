"""``fastflow doctor``: report versions, devices and backends, and check the results of every op.

It runs on an installation without the trainer's libraries.
"""

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .. import __version__, _backend, attention, divergence, flow_matching_loss, interpolate, paths
from ..kernels.attention import reference
from ..ops.random import GaussianNoise

_PACKAGES = ("torch", "triton", "einops", "numpy")
_TOLERANCE = 1e-5  # of fp32 against float64, relative to the largest entry


@dataclass(frozen=True)
class Doctor:
    """Print versions, devices and the backend of every op, and check each op against its definition in float64."""


class Check(NamedTuple):
    """An op on small inputs: ``run(backend, *inputs)`` must agree with ``truth(*inputs)`` in value and derivatives."""

    family: str
    op: str
    run: Callable[..., Tensor]
    truth: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]


def run() -> None:
    """Print the report; exit with status 1 if a check failed."""
    if failed := main():
        raise SystemExit(failed)


def main() -> int:
    """Print the report; return 0 if every check passed, else 1."""
    for name, value in environment():
        print(f"{name:<10} {value}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    failures = 0
    for check in checks(device):
        choice, reason = _backend.explain("auto", *check.inputs)
        print(f"\n{check.family}: {check.op}\n  auto       {choice}{f': {reason}' if reason else ''}")
        runnable = _backend.why_not_triton(*check.inputs) is None
        for backend in ("reference", "triton") if runnable else ("reference",):
            try:
                error = max(relative_errors(check, backend))
            except Exception as problem:  # report it, and try the other ops
                print(f"  {backend:<10} FAILED: {type(problem).__name__}: {problem}")
                failures += 1
                continue
            right = error <= _TOLERANCE  # False for NaN
            failures += not right
            verdict = "ok" if right else f"WRONG, more than {_TOLERANCE:.0e}"
            print(f"  {backend:<10} error {error:.1e} in value, gradient and tangent: {verdict}")
    print(f"\n{'every check passed' if not failures else f'{failures} checks FAILED'}")
    return int(failures > 0)


def environment() -> Iterator[tuple[str, str]]:
    """Yield versions and devices as ``(name, value)``."""
    yield "fastflow", __version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            yield package, "not installed"
    yield "cpu", f"{torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "gpu", "none that PyTorch can use"
    for index in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(index)
        yield f"gpu {index}", f"{p.name}, {p.total_memory / 2**30:.0f} GiB, compute capability {p.major}.{p.minor}"
    if _backend.interpreted():
        yield "triton is", "interpreted (TRITON_INTERPRET=1)"


def checks(device: torch.device) -> Iterator[Check]:
    """Yield a small case of every public op."""
    path, t = paths.Cosine(), torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64, device=device)
    noise = GaussianNoise(seed=1, offset=2)
    pred, x1 = _inputs(device, (3, 45), (3, 45))
    c = [x.view(3, 1) for x in path.coefficients(t)]
    x0 = noise.materialize((3, 45), dtype=torch.float64, device=device, backend="reference")
    yield Check(
        "flow_step",
        "interpolate",
        lambda backend, x1: interpolate(noise, x1, t.to(x1), path=path, backend=backend),
        lambda x1: c[0] * x1 + c[1] * x0,
        (x1,),
    )
    yield Check(
        "flow_step",
        "flow_matching_loss",
        lambda backend, pred, x1: flow_matching_loss(pred, noise, x1, t.to(x1), path=path, backend=backend),
        lambda pred, x1: (pred - c[3] * x1 - c[4] * x0).square().mean(),
        (pred, x1),
    )
    qkv = _inputs(device, (1, 2, 19, 24), (1, 2, 21, 24), (1, 2, 21, 24))
    yield Check(
        "attention",
        "attention",
        lambda backend, q, k, v: attention(q, k, v, backend=backend),
        lambda q, k, v: reference.attention(q, k, v, None, 24**-0.5, False),
        qkv,
    )
    (x,) = _inputs(device, (3, 6))
    (weight,) = _inputs(device, (6, 6))
    yield Check(
        "divergence",
        "divergence",
        lambda backend, x: _trace(x, weight.to(x), backend),
        lambda x: ((1 - torch.tanh(x @ weight.double()) ** 2) * weight.double().diagonal()).sum(1),
        (x,),
    )


def relative_errors(check: Check, backend: str) -> Iterator[float]:
    """Yield the fp32 errors of the value, the gradients and a directional derivative, relative to float64."""
    inputs = check.inputs
    exact = tuple(x.double() for x in inputs)
    tangents = tuple(torch.cos(3 * x) for x in inputs)

    def run(*xs: Tensor) -> Tensor:
        return check.run(backend, *xs)

    everything = tuple(range(len(inputs)))
    got = [run(*inputs), *torch.func.grad(lambda *xs: run(*xs).sum(), everything)(*inputs)]
    want = [check.truth(*exact), *torch.func.grad(lambda *xs: check.truth(*xs).sum(), everything)(*exact)]
    got.append(torch.func.jvp(run, inputs, tangents)[1])
    want.append(torch.func.jvp(check.truth, exact, tuple(v.double() for v in tangents))[1])
    for a, b in zip(got, want, strict=True):
        yield ((a.double() - b).abs().max() / b.abs().max()).item()


def _inputs(device: torch.device, *shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    draws = (GaussianNoise(7, i) for i in range(len(shapes)))
    return tuple(x.materialize(shape, device=device, backend="reference") for x, shape in zip(draws, shapes))


def _trace(x: Tensor, weight: Tensor, backend: str) -> Tensor:
    return divergence(lambda y: torch.tanh(y @ weight), x, method="exact", backend=backend).divergence
