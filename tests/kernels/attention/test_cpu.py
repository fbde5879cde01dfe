"""The CPU implementation against the definition: however it is cut into blocks, with no memory left unwritten."""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastflow.kernels.attention import blocks, cpu, reference
from tests.compare import assert_close

HK = 2
CUTS = {  # scores in a block: rows and heads, whole groups, single rows
    "rows": 12,
    "heads": 40,
    "groups": 90,
    "single": 1,
}


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fill fresh memory with NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


class Problem(NamedTuple):
    groups: int
    queries: int
    keys: int
    num: int  # tangents
    missing: str


PROBLEMS = [
    Problem(1, 7, 5, 1, ""),
    Problem(3, 5, 7, 2, ""),
    Problem(2, 6, 9, 1, "q"),
    Problem(2, 4, 4, 2, "kv"),
    Problem(1, 5, 6, 1, "qk"),
    Problem(2, 9, 3, 0, ""),
]
MASKS = ["none", "causal", "bool", "additive"]
each_problem = pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, p)))


class Inputs(NamedTuple):
    primals: list[Tensor]
    tangents: list[Tensor | None]
    mask: Tensor | None
    options: dict[str, Any]
    g: Tensor
    h: Tensor | None


@functools.cache
def inputs(p: Problem, mask: str) -> Inputs:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    shapes = {"q": (2, HK * p.groups, p.queries, 3), "k": (2, HK, p.keys, 3), "v": (2, HK, p.keys, 2)}
    primals = [draw(*shape) for shape in shapes.values()]
    tangents = [None if name in p.missing or not p.num else draw(p.num, *shape) for name, shape in shapes.items()]
    bias = draw(2, HK * p.groups, p.queries, p.keys)
    out_shape = (2, HK * p.groups, p.queries, 2)
    g, h = draw(*out_shape), draw(p.num, *out_shape) if p.num else None
    options: dict[str, Any] = {"scale": 0.6, "is_causal": mask == "causal"}
    return Inputs(primals, tangents, {"bool": bias > -0.5, "additive": bias}.get(mask), options, g, h)


def attention_and_gradients(p: Problem, mask: str, keep: bool) -> list[Tensor]:
    x = inputs(p, mask)
    operands = (*x.primals, *x.tangents, x.mask)
    out, t_out, *states = cpu.dual_forward(*operands, **x.options, keep=keep)
    assert not any(state.isnan().any() for state in states if state is not None)
    saved = (*operands, out, t_out, *states)
    grads = cpu.dual_backward(x.g, x.h, *saved, **x.options)
    of_tangents = () if x.h is None else cpu.dual_backward(None, x.h, *saved, **x.options, need_tangent_grads=True)
    return [y for y in (out, t_out, *grads, *of_tangents) if y is not None]


@functools.cache
def uncut(p: Problem, mask: str) -> list[Tensor]:
    return attention_and_gradients(p, mask, keep=False)


@pytest.mark.slow
@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("mask", MASKS)
@each_problem
def test_blocks_do_not_change_the_numbers(
    monkeypatch: pytest.MonkeyPatch, problem: Problem, mask: str, keep: bool, cut: str
) -> None:
    expected = uncut(problem, mask)
    monkeypatch.setattr(blocks, "_CPU_SCORES", CUTS[cut])
    monkeypatch.setattr(blocks, "_MIN_ROWS", 2)
    actual = attention_and_gradients(problem, mask, keep)
    for i, (x, y) in enumerate(zip(actual, expected)):
        assert_close(x, y, 1e-13, str(i))


@pytest.mark.parametrize("mask", MASKS)
@each_problem
def test_the_numbers_are_those_of_the_definition(problem: Problem, mask: str) -> None:
    x = inputs(problem, mask)
    given = [problem.num and t is not None for t in x.tangents]
    tangents = [torch.zeros(problem.num, *p.shape, dtype=p.dtype) if t is None else t
                for p, t in zip(x.primals, x.tangents)]  # fmt: skip
    h = torch.zeros(0, *x.g.shape, dtype=x.g.dtype) if x.h is None else x.h
    operands = (*x.primals, *tangents, x.mask)
    out, t_out, lse, mu = reference.dual_forward(*operands, **x.options)
    grads = reference.dual_backward(x.g, h, *operands, **x.options)
    of_tangents = reference.dual_backward(torch.zeros_like(x.g), h, *operands, **x.options)
    if problem.num:
        dtangents = [dt for dt, is_given in zip(grads[3:], given) if is_given]
        expected = [out, t_out, *grads[:3], *dtangents, *of_tangents]
    else:
        expected = [out, *grads[:3]]
    for i, (actual, wanted) in enumerate(zip(uncut(problem, mask), expected, strict=True)):
        assert_close(actual, wanted, 1e-13, str(i))
    *_, lse_cpu, mu_cpu = cpu.dual_forward(*x.primals, *x.tangents, x.mask, **x.options)
    assert torch.equal(lse_cpu == torch.inf, lse == torch.inf)
    assert_close(lse_cpu.nan_to_num(posinf=0), lse.nan_to_num(posinf=0), 1e-13, "lse")
    if mu_cpu is not None:
        assert_close(mu_cpu, mu, 1e-13, "mu")
