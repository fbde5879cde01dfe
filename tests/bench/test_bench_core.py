"""The benchmark's core: it refuses wrong results, times in turn, counts memory and knows its floors."""

import math
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from bench.harness import measure as measuring
from bench.harness import roofline, timing
from bench.harness import rows as results
from bench.harness.case import Case, Entry, Way, WrongResultError, relative_error, verify
from bench.harness.measure import measure
from bench.harness.memory import peak_bytes
from bench.suites.models import digits_dit
from fastflow.nn import dit

X = torch.linspace(1, 2, 1000)


def way(scale: float) -> Way:
    return Way(lambda: (scale * X, X.sum()))


def out_of_memory():
    raise torch.OutOfMemoryError


def no_compiler():
    raise RuntimeError("no C++ compiler\nand many lines more")


def case(**ways: Way) -> Case:
    return Case(
        Entry(op="sum", mode="forward", shape=(1000,), dtype=torch.float32),
        ways=ways,
        truth=lambda: (X.double(), X.double().sum()),
        budget=1e-4,
        floor=roofline.Floor(1e3, 8e3),
    )


def with_factor(factor: float, **ways: Way) -> Case:
    return Case(**{**vars(case(**ways)), "factor": factor})


@pytest.fixture
def slow_roofs(monkeypatch):
    """1 TFLOP/s and 1 GB/s, so that no test waits for the measured ones."""
    monkeypatch.setattr("bench.harness.measure.roof", lambda dtype: roofline.Roof(1e12, 1e9))


# verify


def test_right_results_are_timed():
    errors, left_out = verify(case(eager=way(1), fastflow=way(1 + 1e-5)))
    assert errors["eager"] < 1e-7
    assert errors["fastflow"] == pytest.approx(1e-5, rel=0.01)
    assert left_out == {}


@pytest.mark.parametrize("scale", [1 + 2e-4, math.nan, math.inf])
def test_a_wrong_result_is_refused(scale):
    with pytest.raises(WrongResultError, match="fastflow"):
        verify(case(eager=way(1), fastflow=way(scale)))
    with pytest.raises(WrongResultError, match="eager"):
        verify(case(eager=way(scale), fastflow=way(1)))


@pytest.mark.parametrize("order", [1, -1])
def test_one_wrong_result_of_several_is_refused(order):
    results = (X, torch.tensor(math.nan))[::order]
    truth = (X.double(), torch.tensor(1.0).double())[::order]
    wrong = Case(**{**vars(case(eager=Way(lambda: results))), "truth": lambda: truth})
    with pytest.raises(WrongResultError):
        verify(wrong)


def test_a_result_too_few_is_refused():
    with pytest.raises(ValueError, match="zip"):
        verify(case(eager=way(1), fastflow=Way(lambda: (X,))))


def test_a_wrong_competitor_is_left_out():
    errors, left_out = verify(case(eager=way(1), other=way(1.01), fastflow=way(1)))
    assert list(errors) == ["eager", "fastflow"]
    assert left_out == {"other": "relative error 1.0e-02"}


def test_what_runs_out_of_memory_is_left_out():
    errors, left_out = verify(case(math=Way(out_of_memory), fastflow=way(1)))
    assert list(errors) == ["fastflow"]
    assert left_out == {"math": "out of memory"}
    with pytest.raises(torch.OutOfMemoryError):
        verify(case(math=way(1), fastflow=Way(out_of_memory)))


def test_what_does_not_run_at_all_is_left_out():
    errors, left_out = verify(case(eager=way(1), compiled=Way(no_compiler), fastflow=way(1)))
    assert list(errors) == ["eager", "fastflow"]
    assert left_out == {"compiled": "RuntimeError: no C++ compiler"}
    for broken in ({"eager": Way(no_compiler)}, {"eager": way(1), "fastflow": Way(no_compiler)}):
        with pytest.raises(RuntimeError, match="compiler"):
            verify(case(**broken))


def test_a_factor_holds_fastflow_to_the_baselines_own_error():
    verify(with_factor(3, eager=way(1 + 1e-5), fastflow=way(1 + 2e-5)))
    with pytest.raises(WrongResultError, match="fastflow"):
        verify(with_factor(3, eager=way(1 + 1e-5), fastflow=way(1 + 4e-5)))
    with pytest.raises(WrongResultError, match="fastflow"):  # the budget holds in any case
        verify(with_factor(3, eager=way(1 + 9e-5), fastflow=way(1 + 2e-4)))


def test_a_check_takes_the_place_of_a_call_that_draws_noise():
    drawn = Way(lambda: (torch.randn(1000), torch.randn(())), check=way(1).call)
    verify(case(eager=way(1), fastflow=drawn))


def test_errors_are_relative_where_the_truth_is_not_zero():
    assert relative_error(torch.tensor([1.0, 1.1]), torch.tensor([1.0, 1.0])) == pytest.approx(0.1 / math.sqrt(2))
    assert relative_error(torch.tensor([0.5]), torch.tensor([0.0])) == 0.5
    assert relative_error(torch.zeros(2), torch.zeros(3)) == math.inf


# timing


def test_ways_are_called_in_turn_and_every_other_round_backwards():
    calls = []
    seconds = timing.interleaved({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3, warmup=1)
    assert calls == list("baabbaab")
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_percentiles_are_milliseconds():
    assert timing.percentiles([0.001 * s for s in range(11)]) == pytest.approx((2, 5, 8))


def test_a_ratio_is_taken_round_by_round():
    assert timing.ratio({"a": [1, 10, 100], "b": [2, 20, 200]}, "a", "b") == 0.5


def test_the_number_of_rounds_is_bounded(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(ticks))
    assert [timing.rounds_for(lambda: None, seconds) for seconds in (2, 20, 200)] == [5, 20, 100]


# memory


def test_peak_memory_is_what_is_held_at_once():
    big = torch.ones(1 << 20)  # 4 MiB
    mib = 1 << 20
    assert peak_bytes(lambda: big + 1) / mib == pytest.approx(4, abs=0.1)
    assert peak_bytes(lambda: (big + 1) + (big + 2)) / mib == pytest.approx(12, abs=0.1)
    assert peak_bytes(lambda: (big + 1).sum() + (big + 2).sum()) / mib == pytest.approx(4, abs=0.1)
    assert peak_bytes(lambda: big.view(-1)) == 0


# rows


def test_a_case_becomes_rows(slow_roofs):
    eager, fastflow = measure(Case(**{**vars(case(eager=way(1), slow=way(2), fastflow=way(1))), "note": "small"}))
    assert (eager["implementation"], fastflow["implementation"]) == ("eager", "fastflow")
    assert eager["baseline"] == fastflow["baseline"] == "eager"
    assert eager["times_as_fast"] == 1
    assert eager["ms_p20"] <= eager["ms"] <= eager["ms_p80"]
    assert fastflow["roof_share"] == pytest.approx(8e-3 / fastflow["ms"], rel=1e-3)  # 8 kB at 1 GB/s
    assert fastflow["gbps"] == pytest.approx(8e-3 / fastflow["ms"], rel=1e-3)
    assert fastflow["bound"] == "bytes"
    assert fastflow["note"] == "small; slow: relative error 1.0e+00"


def test_on_a_gpu_every_way_that_can_be_captured_is_timed_as_a_graph_too(slow_roofs, monkeypatch):
    both = case(eager=way(1), fastflow=way(1))
    monkeypatch.setattr(measuring, "CUDA", True)
    monkeypatch.setattr(measuring, "_graph", lambda call: None if call is both.ways["eager"].call else call)
    rows = measure(both)
    assert [(r["implementation"], r["launch"]) for r in rows] == [
        ("eager", "eager"),
        ("fastflow", "eager"),
        ("fastflow", "graph"),
    ]
    assert rows[-1]["baseline"] == "fastflow"
    rows = measure(Case(**{**vars(both), "graph": False}))
    assert {r["launch"] for r in rows} == {"eager"}


def test_a_failed_capture_leaves_stream_and_generator_usable(monkeypatch):
    cuda = mock.MagicMock()
    cuda.current_device.return_value = 0
    monkeypatch.setattr(measuring, "captured", mock.Mock(side_effect=torch.OutOfMemoryError))
    monkeypatch.setattr(torch, "cuda", cuda)
    assert measuring._graph(lambda: None) is None
    cuda.set_stream.assert_called_once_with(cuda.default_stream.return_value)
    generator = cuda.default_generators[0]
    generator.graphsafe_set_state.assert_called_once_with(generator.clone_state.return_value)


def test_the_newest_row_of_a_key_is_read_back(slow_roofs, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    old = measure(case(eager=way(1), fastflow=way(1)))
    new = [{**row, "ms": 0.5} for row in old]
    tuned = [{**new[0], "config": {"block_m": m}} for m in (64, 128)]
    results.append([*old, *new, *tuned])
    assert results.read() == results.read(old[0]["device"]) == [*new, *tuned]
    assert results.read("another device") == []


def test_what_is_no_measurement_is_no_row(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    results.append([{"device": "a CPU", "check": "guard zones"}])
    assert results.read() == []


# roofs and floors


def test_the_lower_roof_binds():
    limit = roofline.Roof(flops_per_second=100, bytes_per_second=10)
    assert limit.seconds(roofline.Floor(200, 10)) == 2
    assert limit.binds(roofline.Floor(200, 10)) == "flops"
    assert limit.seconds(roofline.Floor(100, 50)) == 5
    assert limit.binds(roofline.Floor(100, 50)) == "bytes"


def test_floor_of_the_flow_step():
    # bf16, two bytes: x1, x_t; prediction, x1, gradient; and x0 twice where it is given
    assert roofline.flow_step((3, 7), torch.bfloat16, drawn=True).bytes == 21 * 10
    assert roofline.flow_step((3, 7), torch.bfloat16, drawn=False).bytes == 21 * 14


@pytest.mark.parametrize(
    ("options", "gemms", "tensors"),
    [
        ({}, 2, 4),
        ({"backward": "plain"}, 7, 8),
        ({"tangents": 1}, 6, 8),
        ({"tangents": 1, "backward": "plain"}, 11, 12),
        ({"tangents": 1, "backward": "joint"}, 6 + 15, 16),
        ({"tangents": 4}, 18, 20),
        ({"tangents": 4, "backward": "joint"}, 18 + 45, 40),
    ],
)
def test_floor_of_attention(options, gemms, tensors):
    floor = roofline.attention((2, 3, 10, 8), torch.float32, **options)
    assert floor.flops == gemms * 2 * (2 * 3) * 10 * 10 * 8
    assert floor.bytes == tensors * (2 * 3 * 10 * 8) * 4


def test_floor_of_masked_attention():
    causal = roofline.attention((1, 1, 4, 8), torch.float16, is_causal=True)
    assert causal.flops == 2 * 2 * (1 + 2 + 3 + 4) * 8
    plain, masked = (roofline.attention((1, 1, 4, 8), torch.float16, mask_bytes=m) for m in (0, 16))
    assert masked.bytes - plain.bytes == 16


@pytest.fixture(scope="module")
def problem():
    """A DiT, its floor, and a counter of the FLOPs that PyTorch's math attention makes of a call."""
    model = digits_dit()
    x, t, y = torch.randn(4, 1, 8, 8), torch.rand(4), torch.zeros(4, dtype=torch.int64)

    def count(call):
        with (
            mock.patch.object(dit, "attention", F.scaled_dot_product_attention),
            sdpa_kernel(SDPBackend.MATH),
            FlopCounterMode(display=False) as counter,
        ):
            call(model, x.clone(), t, y)
        return counter.get_total_flops()

    return model, roofline.network(model, 4), count


def test_floor_of_a_dits_forward(problem):
    model, net, count = problem
    assert net.forward == count(lambda model, x, t, y: model(x, t, y))
    parameters = sum(p.numel() for p in model.parameters())
    assert (net.parameter_bytes, net.input_bytes) == (4 * parameters, 4 * 4 * 64)


def test_floor_of_a_training_step(problem):
    _, net, count = problem
    assert roofline.training_step(net).flops == count(lambda model, x, t, y: model(x, t, y).sum().backward())


def test_floor_of_a_divergence(problem):
    model, net, count = problem
    model.requires_grad_(False)
    once = count(lambda model, x, t, y: model(x.requires_grad_(), t, y).sum().backward())
    model.requires_grad_(True)
    assert roofline.divergence(net, 1).flops == once
    assert roofline.divergence(net, 3).flops == net.forward + 3 * (once - net.forward)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_floor_of_guidance(problem):
    model, net, count = problem

    def double_backward(model, x, t, y):
        x.requires_grad_()
        model(x, t, y).sum().backward(create_graph=True)
        x.grad.square().sum().backward()

    model.requires_grad_(False)
    # the last layer's value, and the first layer's gradient, need no second backward: 0.04 %
    assert roofline.guidance(net).flops == pytest.approx(count(double_backward), rel=1e-3)
    model.requires_grad_(True)
