"""Time and peak memory of attention against its length N; the report fits their slopes in a log-log plot.

fastflow's memory must be linear in N in every mode, which a test asserts. Math attention's is quadratic, so it is left
out at lengths where its scores do not fit.
"""

import dataclasses
from collections.abc import Iterable

import pytest
import torch

from bench.harness.case import Case, Entry
from bench.harness.memory import peak_bytes
from bench.harness.slope import slope
from bench.suites.test_attention import BACKWARD, CUDA, JVP, TVM, Problem, attention_case

MODES = (BACKWARD, JVP, TVM)
HEADS, DIM = 4, 64
LINEAR = 1.1  # the largest slope that counts as linear


def lengths(cuda: bool) -> list[int]:
    return [256 << i for i in range(7 if cuda else 4)]


LENGTHS = lengths(CUDA)


def problem(mode: str, n: int, cuda: bool = CUDA) -> Problem:
    return Problem(mode, (1, HEADS, n, DIM), torch.bfloat16 if cuda else torch.float32)


def entry(p: Problem) -> Entry:
    label = "attention's joint backward" if p.mode == TVM else ""
    return Entry("scaling attention", p.name, p.shape, p.dtype, label)


def entries(cuda: bool) -> Iterable[Entry]:
    return (entry(problem(mode, n, cuda)) for n in lengths(cuda) for mode in MODES)


def scaling_case(mode: str, n: int) -> Case:
    p = problem(mode, n)
    case = attention_case(p)
    ways = {name: case.ways[name] for name in (case.baseline, "fastflow")}
    return dataclasses.replace(case, entry=entry(p), ways=ways, skipped={})


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("n", LENGTHS)
def test_scaling(record, n, mode):
    torch.manual_seed(0)
    record(scaling_case(mode, n))


@pytest.mark.parametrize("mode", MODES)
def test_memory_is_linear(mode):
    peaks = [peak_bytes(scaling_case(mode, n).ways["fastflow"].call) for n in LENGTHS]
    assert slope(LENGTHS, peaks) <= LINEAR, dict(zip(LENGTHS, peaks))
