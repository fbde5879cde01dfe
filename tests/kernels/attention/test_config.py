"""The tuning table, the opt-in tuner and what the launchers tell Triton."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from fastflow.kernels.attention import _autotune, _launch
from fastflow.kernels.attention.config import CONFIGS, DIRECTIONS, WIDTHS, Config, row

ARCHES = ("sm_80", "sm_86", "sm_90", "sm_100", "gfx942")


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_every_head_dim_has_every_direction(arch, dtype):
    for width in range(8, 257, 8):
        for direction in DIRECTIONS:
            assert row(arch, dtype, width, direction) is not None or "joint" in direction


def test_the_table_holds_nothing_else():
    assert {key[0] for key in CONFIGS} == {*ARCHES, "fp32"}
    assert {key[1] for key in CONFIGS} == set(WIDTHS)
    assert {key[2] for key in CONFIGS} == set(DIRECTIONS)


def test_no_length_makes_triton_specialise_strides():
    for n in (1, 2, 7, 16, 33, 64):
        x = torch.empty(2, 3, n, 72, dtype=torch.float16)
        align = _launch.alignment(x)
        strides = _launch.strides(x, align)
        assert all(s % 16 == 0 for s in strides)
        expected = [0 if size == 1 else s for size, s in zip(x.shape, x.stride())]
        assert [s // 16 * align for s in strides[:-1]] == expected[:-1]
        assert align == 8


def test_alignment_is_what_every_stride_shares():
    aligned = torch.empty(2, 3, 5, 72)
    assert _launch.alignment(aligned, None) == 8
    assert _launch.alignment(aligned, torch.empty(2, 3, 5, 73)[..., :72]) == 1
    assert _launch.alignment(torch.empty(1, 1, 5, 12)) == 4


def test_tuning_is_off_unless_asked_for(monkeypatch):
    monkeypatch.delenv("FASTFLOW_AUTOTUNE", raising=False)
    config = Config(16, 16, 4, 1)
    x = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.float16)
    assert _autotune.tuned(config, _never, x, "forward", ()) is config


def test_tuning_takes_the_fastest_and_asks_once(monkeypatch):
    monkeypatch.setenv("FASTFLOW_AUTOTUNE", "1")
    monkeypatch.setattr(_autotune, "_fastest", {})
    timed = []

    def milliseconds(config, launch):
        timed.append(config)
        return 0.5 if config == CONFIGS["sm_90", 128, "forward"] else 1.0

    monkeypatch.setattr(_autotune, "_milliseconds", milliseconds)
    x = SimpleNamespace(is_cuda=True, device="cuda:0", dtype=torch.float16)
    config = Config(16, 16, 4, 1)
    for _ in range(2):
        assert _autotune.tuned(config, _never, x, "forward", (64, 64)) == CONFIGS["sm_90", 128, "forward"]
    assert len(timed) == len(set(timed))
    assert config in timed


def _never(config):
    raise AssertionError("launched")
