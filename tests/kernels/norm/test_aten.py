"""The norms from PyTorch's fused kernels against the reference in float64, and the reference against its derivative."""

from itertools import product

import pytest
import torch
from torch.func import jvp

from fastflow.kernels.norm import aten, reference
from tests.kernels.norm.problems import SUBSETS, check, draw

KINDS = [{"centred": centred, "unit": unit} for centred, unit in product((True, False), repeat=2)]
SHAPES = [(2, 3, 5), (3, 1, 4), (1, 7, 63), (2, 3, 100), (1, 2, 1000)]


def check_aten(problem, tolerance=1e-12):
    check(problem, aten.forward, aten.dual_forward, aten.backward, aten.dual_backward, tolerance)


@pytest.mark.parametrize("kinds", KINDS, ids=str)
@pytest.mark.parametrize("subset", SUBSETS)
@pytest.mark.parametrize("g", [True, False])
def test_every_subset_of_operands_and_tangents(subset, kinds, g):
    for per_token in ((), ("scale",), ("shift",), ("scale", "shift")):
        check_aten(draw(2, 3, 5, num=2, subset=subset, per_token=per_token, dtype=torch.float64, g=g, **kinds))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("centred", [True, False])
def test_any_shape(shape, centred):
    check_aten(draw(*shape, dtype=torch.float64, centred=centred))
    check_aten(draw(*shape, centred=centred), 1e-5)


@pytest.mark.parametrize("layout", ["expanded", "slice of rows", "transposed"])
@pytest.mark.parametrize("centred", [True, False])
def test_any_strides(layout, centred):
    check_aten(draw(2, 3, 5, layout=layout, dtype=torch.float64, centred=centred))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("centred", [True, False])
def test_16_bits_are_rounded_once(dtype, centred):
    for groups in (1, 2):
        check_aten(draw(groups, 4, 33, num=2, dtype=dtype, centred=centred), 2e-3 if dtype == torch.float16 else 8e-3)


@pytest.mark.parametrize("block", [1, 7, 40])
@pytest.mark.parametrize("centred", [True, False])
def test_blocks(block, centred, monkeypatch):
    monkeypatch.setattr(aten, "_BLOCK", block)
    for per_token in ((), ("scale", "shift")):
        check_aten(draw(3, 4, 5, num=2, per_token=per_token, dtype=torch.float64, centred=centred))


def test_large_groups_have_a_fused_call_each(monkeypatch):
    problem = draw(3, 4, 5, num=2, dtype=torch.float64)
    plain = aten.backward(
        problem.h, *problem.primals, *aten.forward(*problem.primals, **problem.numbers)[1:], **problem.kinds,
        wants=(True, True, True),
    )  # fmt: skip
    monkeypatch.setattr(aten, "_OWN_CALL", 1)
    check_aten(problem)
    fused = aten.backward(
        problem.h, *problem.primals, *aten.forward(*problem.primals, **problem.numbers)[1:], **problem.kinds,
        wants=(True, True, True),
    )  # fmt: skip
    for a, b in zip(plain, fused, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kinds", KINDS, ids=str)
def test_the_references_tangent_is_its_derivative(kinds):
    problem = draw(2, 3, 5, dtype=torch.float64, **kinds)
    out, t_out = reference.dual_forward(*problem.primals, *problem.tangents, **problem.numbers)
    moving = tuple(t[0] for t in problem.tangents)
    expected = jvp(lambda *y: reference.forward(*y, **problem.numbers), tuple(problem.primals), moving)
    torch.testing.assert_close((out, t_out[0]), expected)


@pytest.mark.parametrize("centred", [True, False])
def test_statistics_have_their_tangents(centred):
    problem = draw(2, 3, 5, num=2, dtype=torch.float64, centred=centred)
    *_, mean, rstd, t_mean, t_rstd = aten.dual_forward(*problem.primals, *problem.tangents, **problem.numbers)
    for k in range(2):
        (m, r), (tm, tr) = jvp(
            lambda x: tuple(y for y in reference.standardized(x, problem.eps, centred)[1:] if y is not None)
            if centred
            else (x[..., :0], reference.standardized(x, problem.eps, False).rstd),
            (problem.primals[0],),
            (problem.tangents[0][k],),
        )  # fmt: skip
        torch.testing.assert_close((mean, rstd), (m.flatten(1), r.flatten(1)))
        torch.testing.assert_close((t_mean[k], t_rstd[k]), (tm.flatten(1), tr.flatten(1)))


def test_a_constant_row_and_large_entries():
    """The variance of a constant row is 0; that of large entries keeps its digits."""
    problem = draw(1, 4, 64)
    problem.primals[0] = torch.cat([torch.full((1, 2, 64), 3.0), 1e4 * problem.primals[0][:, 2:]], 1)
    out, t_out, _ = problem.exact()
    results = aten.dual_forward(*problem.primals, *problem.tangents, **problem.numbers)
    torch.testing.assert_close(results[0].double(), out.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[1].double(), t_out.detach(), rtol=1e-3, atol=1e-3)
