"""The tuner: only what is right is timed, the fastest of that wins, and the table is rewritten and nothing else."""

import pytest
import torch

pytest.importorskip("triton")

from triton.runtime.errors import OutOfResources

from bench.harness import rows as results
from bench.harness.checks import Setting
from bench.tune import __main__ as command
from bench.tune import tuner as tune
from bench.tune.table import Timed, chosen, rewritten
from bench.tune.tuner import Kernel
from fastflow.kernels.attention import config, forward
from fastflow.kernels.attention.config import CONFIGS, DIRECTIONS, Config
from tests.compare import DEVICE

SLOW, FAST, WRONG, LARGE = Config(16, 32, 4, 1), Config(32, 32, 4, 1), Config(32, 16, 4, 1), Config(64, 16, 4, 1)


def kernel(direction: str) -> Kernel:
    return Kernel(Setting(DEVICE, dry=True), direction, 16, torch.float32, (1, 2, 33))


def test_only_what_is_right_is_timed(monkeypatch):
    original = forward.dual_forward

    def dual_forward(*tensors, **options):
        used = forward.config_for(tensors[0], 64, "forward")
        if used == LARGE:
            raise OutOfResources(1 << 20, 1 << 17, "shared memory")
        out, t_out, *rest = original(*tensors, **options)
        return out, (1.01 * t_out if used == WRONG else t_out), *rest

    timed = []

    def interleaved(calls, rounds):
        for call in calls.values():
            call()
        timed.extend(calls)
        return {name: [0.5 if name == str(FAST) else 1.0] * 5 for name in calls}

    monkeypatch.setattr(forward, "dual_forward", dual_forward)
    monkeypatch.setattr(tune, "interleaved", interleaved)
    rows, refused = tune.tune(kernel("forward"), 0.1, None, [SLOW, WRONG, LARGE, FAST])
    assert timed == [str(SLOW), str(FAST)]
    assert [Config(**row["config"]) for row in rows] == [FAST, SLOW]
    assert (rows[0]["ms"], rows[0]["shape"]) == (500, [1, 2, 33, 16])
    assert rows[0]["tflops"] == pytest.approx(2 * 6 * 2 * 33 * 33 * 16 / 0.5 / 1e12, rel=1e-3)
    assert "times the error that is allowed" in refused[WRONG]
    assert "out of resource: shared memory" in refused[LARGE]
    assert len({results.key(row) for row in rows}) == 2
    best = command.fastest({"forward": rows[0]})["forward"]
    assert best == (FAST, 500, f"500.0 ms at [1, 2, 33, 16], {results.device_name()}")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_launch_is_that_of_the_direction(direction, monkeypatch):
    """On tensors that it fills anew, with the configuration that it is given."""
    x = kernel(direction)
    launch = tune.launcher(x, x.subject(Hq=1, Hk=1, Nq=5, Nk=7), FAST)
    name = {"f": "_dual_forward_kernel", "k": "_dual_dkdv_kernel", "q": "_dual_dq_kernel"}[direction.strip("d")[0]]
    seen = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *args, **options: seen.append((options["BLOCK_M"], options["BLOCK_N"]))

    if direction.startswith("forward"):
        monkeypatch.setattr(forward, name, Kernel())
        launch(SLOW)
        assert set(seen) == {(16, 32)}
    else:
        launch(SLOW)  # its kernel is an argument, bound before


def test_candidates_begin_with_the_table_and_fit_the_kernels():
    for direction in DIRECTIONS:
        for arch, width in (("sm_90", 64), ("sm_90", 128)):
            x = Kernel(Setting(DEVICE, dry=True), direction, width, torch.bfloat16, (1, 1, 64))
            offered = tune.candidates(x)
            if (arch, width, direction) in CONFIGS and x.arch == arch:
                assert offered[0] == CONFIGS[arch, width, direction]
            assert len(offered) == len(set(offered)) > 10
            assert all(min(c.block_m, c.block_n) >= 16 and c.num_stages > 0 for c in offered)


def test_a_joint_row_must_beat_the_two_it_replaces():
    timed = {"dq-plain": Timed(FAST, 1.0, ""), "dq-primal": Timed(FAST, 2.0, "")}
    for ms, kept in ((2.9, True), (3.1, False)):
        joint = Timed(SLOW, ms, "")
        assert chosen({**timed, "dq-joint": joint})["dq-joint"] == (joint if kept else None)
    assert "dq-joint" not in chosen({"dq-joint": Timed(SLOW, 1.0, "")})


def test_the_table_is_rewritten_and_nothing_else():
    source = command.SOURCE.read_text()
    many = Config(64, 64, 4, 2, 2)
    changes = {
        "forward": Timed(FAST, 0.5, "0.5 ms"),
        "forward-many": Timed(many, 1.0, "1.0 ms"),
        "dq-joint": None,
    }
    once = rewritten(source, "sm_90", 64, changes)
    assert '        "forward": (32, 32, 4, 1),  # 0.5 ms\n' in once
    expected = _table(source) | {("sm_90", 64, "forward"): vars(FAST), ("sm_90", 64, "forward-many"): vars(many)}
    del expected["sm_90", 64, "dq-joint"]
    assert _table(once) == expected
    again = rewritten(once, "sm_90", 64, {"forward": Timed(SLOW, 0.4, "0.4 ms"), "dq-joint": Timed(FAST, 1.0, "1 ms")})
    assert again.count('"forward": (16, 32, 4, 1),  # 0.4 ms') == 1
    assert _table(again)["sm_90", 64, "forward"] == vars(SLOW)
    assert again.partition('("sm_90", 80)')[2] == source.partition('("sm_90", 80)')[2]


def _table(source: str) -> dict[tuple[str, int, str], dict[str, int]]:
    names = {"__name__": config.__name__}
    exec(source, names)
    return {key: vars(row) for key, row in names["CONFIGS"].items()}


@pytest.mark.parametrize("arguments", [["--directions", "sideways"], []])
def test_the_command_line_says_what_is_missing(arguments, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert ("directions must be among" if arguments else "no GPU") in capsys.readouterr().err
