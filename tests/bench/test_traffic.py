"""Bytes and launches are counted exactly, floors and predictions are those of a calculation by hand."""

import itertools

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

import fastflow as ff
from bench.compiler.report import source_hash
from bench.harness.block_ops import BLOCK_OPS, KERNEL_OPS, BlockProblem, Sizes
from bench.harness.pytorch_ops import OPS
from bench.harness.traffic import bytes_of, counted
from bench.traffic import predict, report
from bench.traffic.moved import PASSES
from tests.compare import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="counts in the interpreter")
SMALL = Sizes(2, 3, 8, 2)


@triton.jit
def _twice_kernel(x_ptr, out_ptr, n, BLOCK: tl.constexpr):
    offs = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offs, mask=offs < n, other=0.0)
    first = tl.load(x_ptr)
    tl.store(out_ptr + offs, x + first, mask=offs < n)


def test_masked_loads_and_stores_are_counted_by_tensor():
    x, out = torch.randn(20, dtype=torch.float16)[3:], torch.empty(17)
    with counted() as traffic:
        _twice_kernel[(3,)](x, out, 17, BLOCK=8)
    (launch,) = traffic.launches
    assert (launch.name, launch.triton, launch.programs) == ("_twice_kernel", True, 3)
    assert [(a.requested, a.touched) for a in launch.loads] == [(2 * (17 + 3), 2 * 17)]
    assert [(a.requested, a.touched) for a in launch.stores] == [(4 * 17, 4 * 17)]
    assert launch.burst == 2 * (8 + 1)
    assert (traffic.touched, traffic.requested) == (2 * 17 + 4 * 17, 2 * 20 + 4 * 17)
    assert traffic.repeats(1) == pytest.approx(20 / 17)
    assert traffic.repeats(1000) == 1
    assert out.equal((x + x[0]).float())


def test_pytorchs_kernels_are_counted_and_views_are_not():
    x = torch.randn(4, 6)
    with counted() as traffic:
        y = x.view(2, 12).unflatten(1, (4, 3)).expand(2, 4, 3)
        torch.empty(7)
        y.transpose(0, 1).exp_()
        x + torch.randn(1, 6).expand(4, 6)
    names = [launch.name for launch in traffic.launches]
    assert names == ["exp_", "randn", "add"]
    assert [launch.touched for launch in traffic.launches] == [2 * 96, 24, 96 + 24 + 96]


def test_kernels_inside_a_custom_op_are_counted_in_its_place():
    x0, x1, t = torch.randn(3, 5), torch.randn(3, 5), torch.rand(3)
    with counted() as traffic:
        ff.interpolate(x0, x1, t, path=ff.paths.CondOT(), backend="triton")
    (kernel,) = (launch for launch in traffic.launches if launch.triton)
    assert kernel.touched == bytes_of([x0, x1, t, 1 - t, x1])
    assert not any("affine" in launch.name for launch in traffic.launches)


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("layer norm, modulated", (4, 4), (6, 6)),  # tensors of tokens, vectors of a sample
        ("gated add", (6, 2), (6, 4)),
        ("gated add + layer norm", (8, 6), (12, 10)),
        ("GELU", (4 * 4, 0), (4 * 6, 0)),
        ("SwiGLU", (4 * 6, 0), (4 * 10, 0)),
    ],
)
def test_the_floor_of_a_joint_pass_by_hand(name, forward, backward):
    p = BlockProblem.draw(BLOCK_OPS[name], SMALL, torch.float32, torch.device("cpu"))
    token, vector = 4 * 2 * 3 * 8, 4 * 2 * 8
    assert p.floor(backward=False) == forward[0] * token + forward[1] * vector
    assert p.floor(backward=True) == backward[0] * token + backward[1] * vector


def test_the_floor_without_tangents_is_about_half():
    p = BlockProblem.draw(BLOCK_OPS["GELU"], SMALL, torch.float32, torch.device("cpu"))
    assert 2 * p.floor(backward=True, tangent=False) == p.floor(backward=True)


@pytest.mark.parametrize("name", BLOCK_OPS)
def test_the_modes_of_a_block_op_agree_with_each_other(name):
    """The joint mode's outputs are the forward's, its tangents those of the jvp, its gradients finite differences."""
    p = BlockProblem.draw(BLOCK_OPS[name], SMALL, torch.float64, torch.device("cpu"))
    function = OPS[p.op.function]
    outs, n = p.run("forward", function), len(p.g)
    values = p.run("jvp", function)
    joint = p.run("joint", function)
    for got, want in zip(joint, values):
        torch.testing.assert_close(got, want)
    for got, want in zip(p.run("backward", function), outs):
        torch.testing.assert_close(got, want)
    assert len(joint) == 2 * n + len(p.operands) + len(p.tangents)
    directional = sum((h * t).sum() for h, t in zip(p.h, values[n:]))
    gradients = joint[2 * n + len(p.operands) :]
    torch.testing.assert_close(sum((d * t).sum() for d, t in zip(gradients, p.tangents.values())), directional)


BUDGET = {
    "part": "body",
    "ctas": 8,
    "issued": 400,
    "operand_bytes": 0,
    "shared_bytes": 0,
    "local_bytes": 0,
    "global_bytes": 0,
    "tensor_op": "",
    "math_flops": 0,
    "exp2": 0,
    "other MUFU": 0,
    "FP32": 100,
    "FP32 compare": 0,
    "IMAD": 0,
    "conversion": 0,
    "integer": 0,
    "shuffle": 0,
}


def test_the_predicted_bandwidth_by_hand():
    kernel = {"loaded": 4096, "stored": 4096, "burst": 4096}
    found = predict.bandwidth(kernel, BUDGET, 0.98)
    assert (found.in_flight, found.bound, found.share) == (8 * 4096, "memory", 0.98)
    few = predict.bandwidth(kernel, BUDGET | {"ctas": 1}, 1.0)
    assert few.bound == "latency"
    latency = predict.IDLE_LATENCY + few.share * (predict.FULL_LATENCY - predict.IDLE_LATENCY)
    assert few.share == pytest.approx(8192 / predict.BYTES_PER_CYCLE / (latency + 100))
    busy = predict.bandwidth(kernel, BUDGET | {"exp2": 10_000}, 1.0)
    assert busy.bound == "MUFU"
    assert busy.share == pytest.approx(8192 / predict.BYTES_PER_CYCLE / (32 * 10_000 / 16))


def test_a_pipelined_loop_hides_its_instructions_and_keeps_more_in_flight():
    kernel = {"loaded": 4 * 4096, "stored": 4096, "burst": 4096}
    loop = BUDGET | {"part": "loop", "ctas": 1, "issued": 2000}
    plain, two, three = (predict.bandwidth(kernel, loop, 1.0, stages) for stages in (1, 2, 3))
    assert plain.share < two.share < three.share
    assert (two.in_flight, three.in_flight) == (4096, 2 * 4096)


def test_an_iteration_moves_what_it_loads_between_two_stores():
    kernel = {"loaded": 4 * 4096, "stored": 4096, "burst": 4096}
    assert predict.bytes_of(kernel) == 4096 * 5 / 4
    assert predict.bandwidth(kernel, BUDGET, 1.0).in_flight == 8 * 4096


@pytest.fixture(scope="module")
def recorded():
    return report.recorded()


# predicted below 85 % of the bandwidth: a third stage of their loops would load further ahead
BELOW_THE_BAR = {"layer norm, modulated, joint backward", "gated add + layer norm, joint backward"}


def test_the_recorded_report_is_of_these_sources_and_within_limits(recorded):
    counted_rows = [row for row in recorded if "floor" in row]
    assert [(row["op"], row["pass"]) for row in counted_rows] == list(itertools.product(KERNEL_OPS, PASSES))
    for row in counted_rows:
        assert row["source"] == source_hash(row["family"]), "the kernels changed: run python -m bench.traffic"
    assert {fault.partition(", _")[0] for fault in report.faults(recorded)} == BELOW_THE_BAR
    assert len(list(report.predictions(counted_rows))) == len(counted_rows)
    assert report.TABLE.read_text() == report.text(recorded)


def test_a_block_launches_less_than_a_third_of_pytorchs_kernels(recorded):
    found = {(row["way"], row["pass"]): row["launches"] for row in recorded if "way" in row}
    for name in PASSES:
        assert 3 * found["fastflow", name] < found["PyTorch", name]


def test_faults_are_seen():
    row = {"op": "x", "pass": "joint forward", "floor": 100, "moved": 105, "reloads": 1.0, "family": "noise"}
    row["kernels"] = [{"kernel": "none", "programs": 1, "loaded": 1, "stored": 1, "burst": 1}]
    assert report.faults([row]) == []
    assert "1.060 times the floor" in report.faults([row | {"moved": 106}])[0]
    assert "2.0 times" in report.faults([row | {"reloads": 2.0}])[0]
