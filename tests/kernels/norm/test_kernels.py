"""The Triton kernels against the reference in float64: shapes, strides, dtypes, tangents, sums over tokens."""

import pytest
import torch

pytest.importorskip("triton")

from fastflow.kernels.norm import backward, config, forward
from tests.compare import DEVICE
from tests.kernels.norm.problems import SUBSETS, check, draw

EPSILON = {torch.float32: 5e-6, torch.float16: 2e-3}


def check_kernels(problem, alone=False):
    problem.primals, problem.tangents = (
        [None if y is None else y.to(DEVICE) for y in group] for group in (problem.primals, problem.tangents)
    )
    problem.g, problem.h = None if problem.g is None else problem.g.to(DEVICE), problem.h.to(DEVICE)
    tolerance = EPSILON[problem.h.dtype]
    check(problem, forward.forward, forward.dual_forward, backward.backward, backward.dual_backward, tolerance, alone)


@pytest.mark.parametrize("subset", SUBSETS)
def test_every_subset_of_operands_and_tangents(subset):
    check_kernels(draw(2, 3, 5, num=2, subset=subset))
    check_kernels(draw(1, 3, 5, subset=subset, per_token=("scale", "shift"), g=False, centred=False, unit=False))


def test_each_gradient_alone():
    check_kernels(draw(1, 2, 5, per_token=("shift",)), alone=True)


@pytest.mark.parametrize("shape", [(3, 1, 1), (1, 3, 63), (2, 3, 100), (1, 2, 1000)], ids=str)
def test_any_shape(shape):
    check_kernels(draw(*shape, eps=0.1))
    check_kernels(draw(*shape, subset="weights", centred=False, eps=0.1))


@pytest.mark.parametrize("layout", ["expanded", "slice of rows", "transposed"])
def test_any_strides(layout):
    check_kernels(draw(2, 2, 20, layout=layout))


def test_half_precision():
    check_kernels(draw(2, 3, 33, dtype=torch.float16))


def test_sums_over_many_chunks(monkeypatch):
    """Several partial sums a group, the last one shorter, and one group with more chunks than a tile adds at once."""
    monkeypatch.setattr(backward, "rows_of_partial", lambda groups, rows: 2)
    check_kernels(draw(2, 3, 5, num=2))
    check_kernels(draw(1, 19, 5))


def test_equal_bits_each_run():
    p = draw(1, 17, 40)
    _, _, mean, rstd, _, t_rstd = forward.dual_forward(*p.primals, *p.tangents, **p.numbers)
    runs = [
        backward.dual_backward(
            p.g, p.h, *p.primals, *p.tangents, mean, rstd, t_rstd, **p.kinds, wants=(True,) * 3, t_wants=(True,) * 3
        )
        for _ in range(2)
    ]  # fmt: skip
    for a, b in zip(*([y for group in run for y in group] for run in runs), strict=True):
        assert torch.equal(a, b)


def test_tiles():
    for width in (1, 63, 64, 384, 1152, 1536, config.MAX_WIDTH):
        for is_backward in (False, True):
            tile = config.config(width, backward=is_backward)
            assert tile.columns >= width
            assert tile.columns // 2 < max(width, 16)
    assert config.rows_of_partial(32, 256) == config.PARTIAL_ROWS
    assert config.rows_of_partial(1, 3) == 1
    assert config.rows_of_partial(1, 10**6) == config.PARTIAL_ROWS


def test_every_tile_is_compiled():
    from fastflow.kernels.norm.compile_cases import compile_cases

    compiled = {(case.constants.get("COLUMNS"), case.name.split()[0]) for case in compile_cases()}
    for width in config.WIDTHS:
        assert {(width, "forward"), (width, "backward")} <= compiled
