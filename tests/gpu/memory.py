"""Parts of the GPU check on memory: guard zones, offsets beyond 32 bits, and compute-sanitizer if installed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from unittest import mock

import torch
from torch import Tensor

import fastflow as ff
from bench.harness.accuracy import GuardedAllocator
from bench.harness.block_ops import BLOCK_OPS, KERNEL_OPS, BlockProblem, Sizes
from bench.harness.checks import Finding, Setting
from bench.harness.rows import ROOT
from bench.harness.subjects import Subject, attention_problem, dtypes, every_launcher
from fastflow.kernels.attention import backward, forward
from fastflow.kernels.flow_step import interpolate, loss
from fastflow.kernels.flow_step._launch import Terms
from tests.gpu.parts import Case

_FAR = (1 << 31) + 64  # elements
_AXES = {"heads": 1, "rows": 2}
_SANITIZER_SECONDS = 60


def guard_zones(setting: Setting) -> list[Case]:
    """Check that kernels write all of their outputs and nothing outside; outputs start as NaN between zones of NaN."""
    return [Case(s.name, _guarded(s)) for s in every_launcher(setting, dtypes(setting)[-1], 16 if setting.dry else 72)]


def _guarded(subject: Subject) -> Callable[[], list[Finding]]:
    def check() -> list[Finding]:
        allocate = GuardedAllocator()

        def new_empty(x: Tensor, *shape, dtype=None, device=None) -> Tensor:
            return allocate(*shape, dtype=dtype or x.dtype, device=device or x.device)

        with mock.patch.object(torch, "empty", allocate), mock.patch.object(Tensor, "new_empty", new_empty):
            results = subject.kernels()
        if not allocate.blocks:
            return [Finding(subject.name, torch.inf, "no output was allocated")]
        allocate.check()
        finite = {key: bool(x.isfinite().all()) for key, x in results.items()}
        return [Finding(f"{subject.name} {key}", 0.0 if ok else torch.nan) for key, ok in finite.items()]

    return check


def far_views(setting: Setting) -> list[Case]:
    """Check that views with heads, rows or samples over 2³¹ elements apart give the bits of contiguous tensors."""
    needed = 2 * _FAR * 2 + (2 << 30)
    if setting.device.type == "cuda":
        memory = torch.cuda.get_device_properties(setting.device).total_memory
        if memory < needed:
            reason = f"needs {needed / 2**30:.0f} GiB of GPU memory, has {memory / 2**30:.0f}"
            return [Case("far views", lambda: [Finding("far views", None, reason)])]
    dtype = dtypes(setting)[-1]
    return [
        Case("flow step", lambda: _compare("flow step", lambda far: _flow_step(setting, dtype, far))),
        *(Case(f"attention {axis}", _far_attention(setting, dtype, axis)) for axis in _AXES),
        *(Case(name, _far_block_op(setting, dtype, name)) for name in KERNEL_OPS),
    ]


def _far_attention(setting: Setting, dtype: torch.dtype, axis: str) -> Callable[[], list[Finding]]:
    return lambda: _compare(f"attention {axis}", lambda far: _attention(setting, dtype, _AXES[axis], far))


def _far_block_op(setting: Setting, dtype: torch.dtype, name: str) -> Callable[[], list[Finding]]:
    p = BlockProblem.draw(BLOCK_OPS[name], Sizes(1, 33, 64, 1), dtype, setting.device)
    function = partial(getattr(ff, p.op.function), backend="triton")

    def compute(far: bool) -> list[Tensor]:
        first, x = next(iter(p.operands.items()))
        operands = {**p.operands, first: _spread(x, x.ndim - 2, _buffer(x))} if far else p.operands
        return list(replace(p, operands=operands).run("joint", function))

    return lambda: _compare(name, compute)


def _compare(name: str, compute: Callable[[bool], list[Tensor]]) -> list[Finding]:
    pairs = zip(compute(True), compute(False), strict=True)
    return [Finding(f"{name}, result {i}", 0.0 if torch.equal(*pair) else torch.inf) for i, pair in enumerate(pairs)]


def _spread(x: Tensor, axis: int, buffer: Tensor) -> Tensor:
    """Copy x into the buffer with one axis stretched over all of it."""
    strides = list(x.contiguous().stride())
    strides[axis] = -(-_FAR // (x.shape[axis] - 1)) // 8 * 8 + 8
    return buffer.as_strided(x.shape, strides).copy_(x)


def _buffer(x: Tensor) -> Tensor:
    return torch.empty(_FAR + 8 * x.numel() + 64, dtype=x.dtype, device=x.device)


def _flow_step(setting: Setting, dtype: torch.dtype, far: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x1, pred = (torch.randn(3, 2, 40, generator=generator).to(setting.device, dtype) for _ in range(2))
    cs = [torch.randn(3, generator=generator).to(setting.device) for _ in range(3)]
    grad = torch.randn(3, generator=generator).to(setting.device)
    results = []
    for axis in (0, 1):
        x = _spread(x1, axis, _buffer(x1)) if far else x1
        terms = Terms(x, None, None, *cs, (1, 2, 3), ())
        results += [interpolate.interpolate(terms, torch.float32), loss.squared_error(pred, terms)]
        results += [loss.squared_error_backward(grad, pred, terms)]
    return results


def _attention(setting: Setting, dtype: torch.dtype, axis: int, far: bool) -> list[Tensor]:
    """Run forward and backward; far: the key and its tangent are far views."""
    x = attention_problem(setting, dtype, B=1, Hq=2, Hk=2, Nq=33, Nk=33, width=16 if setting.dry else 64)
    (q, k, v), (tq, tk, tv) = x.primals, x.ts
    if far:
        k, tk = _spread(k, axis, _buffer(k)), _spread(tk, axis + 1, _buffer(tk))
    saved = forward.dual_forward(q, k, v, tq, tk, tv, None, **x.arguments())
    return [*saved, *backward.dual_backward(x.G, x.H, q, k, v, tq, tk, tv, None, *saved, **x.arguments())]


def sanitizer(setting: Setting) -> list[Case]:
    """Run the guard zones under compute-sanitizer, in a process without PyTorch's caching allocator."""
    return [Case(tool, lambda tool=tool: _sanitized(tool, setting)) for tool in ("memcheck", "racecheck")]


def _sanitized(tool: str, setting: Setting) -> list[Finding]:
    program = shutil.which("compute-sanitizer")
    if program is None or setting.dry:
        return [Finding(tool, None, "compute-sanitizer is not on the PATH" if program is None else "dry run")]
    check = [sys.executable, "-m", "tests.gpu", "--only", "guard zones", "--workers", "1", "--no-record"]
    seconds = max(1.0, min(_SANITIZER_SECONDS, setting.time_left))
    with subprocess.Popen(
        [program, "--tool", tool, *check],
        cwd=ROOT, env=os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            output, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # with the program that it runs
            return [Finding(tool, None, f"{tool} took more than {seconds:.0f} s")]
    summary = re.search(r"ERROR SUMMARY: (\d+).*|RACECHECK SUMMARY: .*\((\d+) errors.*", output)
    if summary is None:
        return [Finding(tool, torch.inf, output.strip()[-200:])]
    ended = Finding(f"{tool}: the program itself", 2.0 * abs(process.returncode), output.strip()[-200:])
    return [Finding(tool, 2.0 * int(summary[1] or summary[2]), summary[0]), ended]
