"""The reference in blocks: however it is cut, the numbers are those of one block, and no memory is left unwritten."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from fastflow.kernels.attention import cpu as reference
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
    """Memory that nobody has written is NaN."""
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


def attention_and_gradients(p: Problem, mask: str, keep: bool) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    shapes = {"q": (2, HK * p.groups, p.queries, 3), "k": (2, HK, p.keys, 3), "v": (2, HK, p.keys, 2)}
    primals = [draw(*shape) for shape in shapes.values()]
    tangents = [None if name in p.missing or not p.num else draw(p.num, *shape) for name, shape in shapes.items()]
    bias = draw(2, HK * p.groups, p.queries, p.keys)
    operands = (*primals, *tangents, {"bool": bias > -0.5, "additive": bias}.get(mask))
    options: dict[str, Any] = {"scale": 0.6, "is_causal": mask == "causal"}
    out, t_out, *states = reference.dual_forward(*operands, **options, keep=keep)
    assert not any(x.isnan().any() for x in states if x is not None)
    g, h = draw(*out.shape), None if t_out is None else draw(*t_out.shape)
    saved = (*operands, out, t_out, *states)
    grads = reference.dual_backward(g, h, *saved, **options)
    of_tangents = () if h is None else reference.dual_backward(None, h, *saved, **options, need_tangent_grads=True)
    return [x for x in (out, t_out, *grads, *of_tangents) if x is not None]


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("mask", ["none", "causal", "bool", "additive"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: "-".join(map(str, p)))
def test_blocks_do_not_change_the_numbers(
    monkeypatch: pytest.MonkeyPatch, problem: Problem, mask: str, keep: bool, cut: str
) -> None:
    expected = attention_and_gradients(problem, mask, keep=False)
    monkeypatch.setattr(reference, "_CPU_SCORES", CUTS[cut])
    monkeypatch.setattr(reference, "_MIN_ROWS", 2)
    actual = attention_and_gradients(problem, mask, keep)
    for i, (x, y) in enumerate(zip(actual, expected)):
        assert_close(x, y, 1e-13, str(i))
