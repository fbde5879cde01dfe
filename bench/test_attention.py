"""Attention with its derivatives against PyTorch's math backend, and plain attention against PyTorch's fastest.

    pytest bench/test_attention.py                  # pytest-benchmark's own table
    python -m bench.test_attention                  # ratios of interleaved rounds, and peak memory

What is timed is first compared with float64 at the timed shape. The bars, on two cores: joint at N = 1024 at least 2.5
times as fast as math with at most a quarter of its memory; no case slower; plain within 5 % of PyTorch.
"""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastflow as ff
from bench._timing import interleaved, report

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPES = [(2, 6, 64, 64), (2, 6, 256, 64), (2, 6, 1024, 64)]
TOLERANCE = 1e-5
Ways = dict[str, Callable[[], object]]


def math_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value)


JOINT = {"math": math_attention, "fastflow": ff.attention}
PLAIN = {"torch": F.scaled_dot_product_attention, "fastflow": ff.attention}


def joint(attend: Callable[..., Tensor], x: list[Tensor]) -> list[Tensor]:
    """Forward with tangents, and the gradients of primals and tangents. x: six inputs and two cotangents."""
    leaves = [y.detach().requires_grad_() for y in x[:6]]
    outs = torch.func.jvp(attend, tuple(leaves[:3]), tuple(leaves[3:]))
    return [*outs, *torch.autograd.grad(outs, leaves, x[6:])]


def plain(attend: Callable[..., Tensor], x: list[Tensor]) -> list[Tensor]:
    """Forward, and the gradients of query, key and value."""
    leaves = [y.detach().requires_grad_() for y in x[:3]]
    out = attend(*leaves)
    return [out, *torch.autograd.grad(out, leaves, x[6])]


def inputs(shape: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape, device=DEVICE) for _ in range(8)]


def ways(work: Callable[..., list[Tensor]], shape: tuple[int, ...]) -> Ways:
    """The calls to time, after refusing wrong results."""
    x, contenders = inputs(shape), JOINT if work is joint else PLAIN
    truth = work(math_attention, [y.double() for y in x])
    for name, attend in contenders.items():
        for got, want in zip(work(attend, x), truth, strict=True):
            error = (got.double() - want).norm() / want.norm()
            assert error <= TOLERANCE, f"{name}: relative error {error:.1e}"
    return {name: lambda attend=attend: work(attend, x) for name, attend in contenders.items()}


def peak_memory(name: str, shape: tuple[int, ...]) -> int:
    """Bytes by which one joint pass raises the peak of a fresh process, or of the GPU."""
    command = [sys.executable, "-m", "bench.test_attention", "memory", name, *map(str, shape)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _measure_memory(name: str, shape: tuple[int, ...]) -> int:
    joint(JOINT[name], inputs((1, 1, 8, 8)))
    x = inputs(shape)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        joint(JOINT[name], x)
        return torch.cuda.max_memory_allocated() - before
    before = _resident_peak()
    joint(JOINT[name], x)
    return _resident_peak() - before


def _resident_peak() -> int:
    """Bytes. Not getrusage's: that number outlives exec, and starts at the parent's."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.mark.parametrize("way", list(JOINT))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_joint(benchmark, shape, way):
    benchmark.group = f"forward with tangents and joint backward {shape}"
    benchmark(ways(joint, shape)[way])


@pytest.mark.parametrize("way", list(PLAIN))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_plain(benchmark, shape, way):
    benchmark.group = f"forward and backward {shape}"
    benchmark(ways(plain, shape)[way])


def main() -> None:
    print(f"{DEVICE}, torch {torch.__version__}, {torch.get_num_threads()} threads; x = times as fast as the first\n")
    for shape in SHAPES:
        rounds = 10 if shape[2] > 512 else 60
        print(
            report(f"forward with tangents and joint backward {shape}", interleaved(ways(joint, shape), rounds), "math")
        )
        print(report(f"forward and backward {shape}", interleaved(ways(plain, shape), rounds), "torch"))
    memory = {name: peak_memory(name, SHAPES[-1]) for name in JOINT}
    print(f"peak memory of a joint pass {SHAPES[-1]}")
    for name, size in memory.items():
        print(f"  {name:<28} {size / 2**20:9.1f} MiB  {size / memory['math']:6.2f} of math")


if __name__ == "__main__":
    if sys.argv[1:2] == ["memory"]:
        print(_measure_memory(sys.argv[2], tuple(map(int, sys.argv[3:]))))
    else:
        main()
