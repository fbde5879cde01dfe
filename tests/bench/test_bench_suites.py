"""The suites' cases, those for a GPU too, agree with float64 at small shapes; no two of a suite write the same row."""

import collections
import dataclasses

import pytest
import torch

from bench.harness.block_ops import BLOCK_OPS, Sizes
from bench.harness.case import is_own, verify
from bench.suites import test_attention as attention
from bench.suites import test_block_ops as block_ops
from bench.suites import test_divergence as divergence
from bench.suites import test_flow_step as flow_step

GPU, REST, CPU = (list(problems()) for problems in (attention.on_gpu, attention.rest_on_gpu, attention.on_cpu))
LARGEST = {"none": 48, "causal": 32, "bool": 32, "additive": 32}


def small(p: attention.Problem) -> attention.Problem:
    """With less of what costs time, and PyTorch's compiler left out."""
    b, h, n, d = p.shape
    return dataclasses.replace(p, shape=(min(b, 2), min(h, 2), min(n, LARGEST[p.mask]), d), compiled=False)


@pytest.mark.parametrize("problems", [CPU, GPU, REST], ids=["on a CPU", "on a GPU", "the rest"])
def test_no_two_attention_cases_write_the_same_row(problems):
    keys = collections.Counter((p.name, p.shape, p.dtype) for p in problems)
    assert max(keys.values()) == 1


def test_the_grids_of_the_peers_are_there():
    masks = {(p.mask, p.mode) for p in GPU if p.shape[3] == 64}
    assert {(mask, mode) for mask in LARGEST for mode in (attention.JVP, attention.TVM)} <= masks
    grid = {(p.mask, p.mode, p.shape[2]) for p in (*GPU, *REST) if p.shape == (2, 12, p.shape[2], 64)}
    assert {(mask, mode, 2**i) for mask in LARGEST for mode in attention.MODES for i in range(5, 12)} <= grid
    lengths = {p.shape[2] for p in GPU if p.shape[3] == 128}
    assert lengths == {2**i for i in range(7, 15)}
    assert {p.tangents for p in GPU} == {p.tangents for p in CPU} == {1, 4, 16}


@pytest.mark.parametrize("cuda", [False, True], ids=["as on a CPU", "as on a GPU"])
@pytest.mark.parametrize("problem", sorted({small(p) for p in (*CPU, *GPU, *REST)}, key=str), ids=attention._id)
def test_attention_cases(problem, cuda, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(attention, "CUDA", cuda)
    case = attention.attention_case(problem)
    errors, left_out = verify(case)
    assert set(errors) == set(case.ways)
    assert any(is_own(name) for name in errors)
    assert set(left_out) <= {"jvp-flash-attention"}


def test_attention_is_checked_in_blocks_where_float64_does_not_fit(monkeypatch):
    problem = attention.Problem(attention.TVM, (1, 2, 64, 16), mask="causal")
    case = attention.attention_case(problem)
    whole = case.truth()
    monkeypatch.setattr(attention, "FLOAT64_SCORES", 0)
    monkeypatch.setattr(attention, "math_attention", None)
    for got, want in zip(case.truth(), whole, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("mode", block_ops.MODES)
@pytest.mark.parametrize("name", BLOCK_OPS)
def test_block_op_cases(name, mode):
    case = block_ops.case(name, mode, Sizes(2, 3, 8, 2), torch.float32)
    assert set(verify(case).errors) == {"PyTorch", "fastflow"}
    assert case.floor.bytes > 0
    assert (case.floor.flops > 0) == (name == "linear")


@pytest.mark.parametrize("drawn", [False, True], ids=["given", "drawn"])
@pytest.mark.parametrize("dtype", flow_step.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(3, 4, 6, 5), (5, 7)], ids=str)
def test_flow_step_cases(shape, dtype, drawn):
    torch.manual_seed(0)
    case = flow_step.step_case(shape, dtype, drawn)
    assert set(verify(case).errors) == set(case.ways)
    for way in case.ways.values():
        assert [y.shape for y in way.call()] == [shape, (), shape]


def test_the_flow_step_draws_new_noise_in_every_call():
    call = flow_step.step_case((5, 7), torch.float32, drawn=True).ways["fastflow"].call
    assert not call()[0].equal(call()[0])


def test_a_training_step_changes_the_model_and_its_check_does_not(monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(flow_step, "BATCH", 8)
    case = flow_step.training_case()
    first, again = verify(case), verify(case)
    assert first == again
    for way in case.ways.values():
        way.call()
    with pytest.raises(AssertionError):  # a truth of the weights before the step
        verify(case)


@pytest.fixture
def small_batch(monkeypatch):
    monkeypatch.setitem(divergence.SHAPES, divergence.DIGITS, (2, 1, 8, 8))


@pytest.mark.parametrize("num", [1, 4], ids=["1 probe", "4 probes"])
def test_divergence_cases(num, small_batch):
    torch.manual_seed(0)
    case = divergence.estimate_case(divergence.DIGITS, num)
    assert set(verify(case).errors) == set(case.ways)


def test_exact_divergence_case(small_batch):
    torch.manual_seed(0)
    case = divergence.exact_case(divergence.DIGITS)
    assert set(verify(case).errors) == set(case.ways)


def test_guidance_case(small_batch):
    torch.manual_seed(0)
    case = divergence.guidance_case(divergence.DIGITS)
    assert set(verify(case).errors) == set(case.ways)
