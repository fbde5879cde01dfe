"""The wiring on an op with two outputs, an operand that may be absent and a gradient that is its cotangent.

``total = x + y`` and ``square = w total²``, or ``total²`` without w.
"""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

from fastflow.ops._batching import JoinBatch
from fastflow.ops._functions import Functions, absent
from fastflow.ops._twice_differentiable import TwiceDifferentiable
from tests.compare import assert_close, tensors
from tests.modes import MODES, Problem, gradients


class Primals(NamedTuple):
    x: Tensor  # [B, N]
    y: Tensor  # [B, N]
    w: Tensor | None  # [B, N]


class Outputs(NamedTuple):
    total: Tensor
    square: Tensor


class Constants(NamedTuple):
    pass


class Options(NamedTuple):
    implementation: str


WANTED: list[tuple[bool, ...]] = []


class TotalAndSquare(Functions):
    """Only total is kept; the gradients of x and y are one tensor."""

    def forward(self, call):
        x, y, w = call.x
        total = (x + y).contiguous()
        return total, (total.square() if w is None else w * total.square()).contiguous()

    def fake_forward(self, call):
        return tuple(call.x.x.new_empty(call.x.x.shape) for _ in range(2))

    def backward(self, call):
        total, (g, s), w = call.out.total, call.g, call.x.w
        WANTED.append(tuple(call.wants))
        dx, dw = g, absent(total)
        if s is not None:
            curved = 2 * total * s * (1 if w is None else w)
            dx = curved if g is None else g + curved
            dw = absent(total) if w is None else s * total.square()
        elif w is not None:
            dw = torch.zeros_like(g)
        return dx.contiguous(), dx.contiguous(), dw.contiguous()

    def dual_forward(self, call):
        total, square = self.forward(call)
        (tx, ty, tw), w = call.tangents, call.x.w
        given = [t for t in (tx, ty) if t is not None]
        t_total = sum(given) if given else torch.zeros_like(tw)
        t_square = 2 * total * t_total * (1 if w is None else w)
        t_square = t_square if tw is None else t_square + tw * total.square()
        return total, square, t_total.clone().contiguous(), t_square.contiguous()

    def dual_backward(self, call):
        total, t_total, w = call.out.total, call.t_out.total, call.x.w
        (g, s), (h, r), (tx, ty, tw) = call.g, call.h, call.tangents
        WANTED.append((*call.wants, *call.t_wants))
        zero = torch.zeros_like(t_total)
        r = zero if r is None else r
        weight = 1 if w is None else w
        dx = (2 * weight * t_total * r).sum(0) + (0 if tw is None else (2 * tw * total * r).sum(0))
        dx = dx + (0 if g is None else g) + (0 if s is None else 2 * weight * total * s)
        dw = absent(total) if w is None else (2 * total * t_total * r).sum(0) + (0 if s is None else s * total.square())
        dt = 2 * weight * total * r + (0 if h is None else h)
        dtw = absent(total) if tw is None else r * total.square()
        none = absent(total)
        return dx, dx, dw, none if tx is None else dt, none if ty is None else dt, dtw


OP = TwiceDifferentiable(
    "total_and_square",
    x=Primals,
    outputs=Outputs,
    kept=("total",),
    constants=Constants,
    options=Options,
    functions=TotalAndSquare(),
    batching=JoinBatch(),
    instead="x + y",
)


def op(x: Tensor, y: Tensor, w: Tensor | None = None) -> Outputs:
    return OP(Primals(x, y, w), Constants(), lambda primals, tangents: (primals, tangents, Options("toy")))


def spelled_out(x: Tensor, y: Tensor, w: Tensor | None = None) -> Outputs:
    total = x + y
    return Outputs(total, total.square() if w is None else w * total.square())


def draw(seed: int, *lead: int) -> Tensor:
    return torch.randn(*lead, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


PROBLEM = Problem(
    x=(draw(0), draw(1), draw(2)),
    t=(draw(3), draw(4), draw(5)),
    ts=(draw(6, 4), draw(7, 4), draw(8, 4)),
    xs=(draw(9, 4), draw(10, 4), draw(11, 4)),
    w=draw(12),
    ws=draw(13, 4),
)
RESULTS = {
    "the first": lambda out: out.total,
    "the second": lambda out: out.square,
    "both": lambda out: out.total * out.square.sin(),
}


@pytest.mark.parametrize("inputs", [(0, 1, 2), (0,), (2,), (1, 2)], ids=str)
@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("mode", MODES)
def test_mode(mode, result, inputs):
    if result == "the first" and (inputs == (2,) or (2 in inputs and mode == "dual_level_tangent_of_gradient")):
        pytest.skip("the first output does not depend on w, whose gradient then has no tangent")
    got, want = (
        tensors(MODES[mode](*PROBLEM.at(inputs, lambda *x, f=f: RESULTS[result](f(*x))))) for f in (op, spelled_out)
    )
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-13)


@pytest.mark.parametrize("mode", MODES)
def test_mode_without_the_optional_operand(mode):
    problem = PROBLEM.at((0, 1), lambda *x: x)[1]
    got, want = (tensors(MODES[mode](lambda *x, f=f: RESULTS["both"](f(*x)), problem)) for f in (op, spelled_out))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-13)


def test_only_wanted_gradients_are_asked_for():
    x, y, w = (y.clone().requires_grad_(i == 1) for i, y in enumerate(PROBLEM.x))
    WANTED.clear()
    op(x, y, w).square.sum().backward()
    assert WANTED == [(False, True, False)]
    WANTED.clear()
    _, tangent = jvp(lambda x: op(x, y, w).square, (x,), (draw(3),))
    tangent.sum().backward()
    assert WANTED == [(False, True, False, False, False, False)]


def test_custom_ops_copy_a_gradient_that_is_a_cotangent():
    x, y, _ = PROBLEM.x
    total, _ = OP.forward.op(x, y, None, "toy")
    g = draw(5)
    dx, dy, _ = OP.backward.op(g, None, x, y, None, total, None, "toy")
    assert len({z.data_ptr() for z in (g, dx, dy)}) == 3
    torch.library.opcheck(OP.backward.op, (g, None, x, y, None, total, None, "toy", True, False, True))


def test_compiles_in_one_graph():
    tx = draw(3)

    def loss(f, x, y):
        out, tangent = jvp(lambda x: f(x, y), (x,), (tx,))
        return (out.total * tangent.square + tangent.total).sum()

    torch._dynamo.reset()
    leaves = [y.clone().requires_grad_() for y in PROBLEM.x[:2]]
    got = gradients(torch.compile(loss, fullgraph=True, backend="aot_eager")(op, *leaves), leaves)
    for a, b in zip(got, gradients(loss(spelled_out, *leaves), leaves)):
        assert_close(a, b, 1e-13)


def test_mapped_cotangents_of_one_output():
    x, y, w = PROBLEM.x
    got, want = (
        vmap(lambda s, f=f: grad(lambda x: (f(x, y, w).square * s).sum())(x))(draw(3, 4)) for f in (op, spelled_out)
    )
    assert_close(got, want, 1e-13)
