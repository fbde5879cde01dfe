"""Attention against its length N: time and peak memory, whose slopes in a log-log plot the report fits.

fastflow's memory is linear in N in every mode, which is asserted here. So is that of the baseline where no tangent
passes, PyTorch's fastest; math attention's is quadratic, and ends where the scores no longer fit.
"""

import dataclasses

import pytest
import torch

from bench._case import Case
from bench._memory import peak_bytes
from bench._slope import slope
from bench.test_attention import BACKWARD, JVP, TVM, Problem, attention_case

CUDA = torch.cuda.is_available()
DTYPE = torch.bfloat16 if CUDA else torch.float32
LENGTHS = [256 << i for i in range(7 if CUDA else 4)]
HEADS, DIM = 4, 64
LINEAR = 1.1  # the largest slope that is


def scaling_case(mode: str, n: int) -> Case:
    case = attention_case(Problem(mode, (1, HEADS, n, DIM), DTYPE))
    ways = {name: case.ways[name] for name in (case.baseline, "fastflow")}
    return dataclasses.replace(case, op="scaling attention", ways=ways, skipped={})


@pytest.mark.parametrize("mode", [BACKWARD, JVP, TVM])
@pytest.mark.parametrize("n", LENGTHS)
def test_scaling(record, n, mode):
    torch.manual_seed(0)
    record(scaling_case(mode, n))


@pytest.mark.parametrize("mode", [BACKWARD, JVP, TVM])
def test_memory_is_linear(mode):
    peaks = [peak_bytes(scaling_case(mode, n).ways["fastflow"].call) for n in LENGTHS]
    assert slope(LENGTHS, peaks) <= LINEAR, dict(zip(LENGTHS, peaks))
