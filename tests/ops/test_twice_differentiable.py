"""The wiring on an op that is not attention: a gated sine with a constant, ``out = offset + gate sin(w x)``."""

import gc
import weakref
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap
from torch.utils.flop_counter import FlopCounterMode

from fastflow.ops._batching import JoinBatch
from fastflow.ops._calls import Backward, DualBackward, DualForward, Forward
from fastflow.ops._functions import Functions, absent
from fastflow.ops._twice_differentiable import TwiceDifferentiable
from tests.compare import assert_close, tensors
from tests.modes import MODES, Problem


class Primals(NamedTuple):
    x: Tensor  # [B, N]
    gate: Tensor  # [B, N]


class Constants(NamedTuple):
    offset: Tensor | None  # [B, N]


class State(NamedTuple):
    state: Tensor


class Options(NamedTuple):
    w: float
    name: str


CALLS: list[str] = []


class GatedSine(Functions):
    """state is ``w x``."""

    def forward(self, call: Forward) -> tuple[Tensor, Tensor]:
        CALLS.append("forward")
        (x, gate), (offset,), w = call.x, call.constants, call.options.w
        return contiguous(gate * (w * x).sin() + (0 if offset is None else offset), w * x)

    def fake_forward(self, call: Forward) -> tuple[Tensor, Tensor]:
        return call.x.x.new_empty(call.x.x.shape), call.x.x.new_empty(call.x.x.shape)

    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        CALLS.append("backward")
        (g,), (state,), w = call.g, call.state, call.options.w
        return contiguous(g * call.x.gate * w * state.cos(), g * state.sin())

    def dual_forward(self, call: DualForward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        CALLS.append("dual_forward")
        out, state = self.forward(Forward(call.x, call.constants, call.options))
        tx, t_gate = call.tangents
        t_state = torch.zeros_like(t_gate) if tx is None else call.options.w * tx
        t_out = call.x.gate * state.cos() * t_state
        return contiguous(out, t_out if t_gate is None else t_out + t_gate * state.sin(), state, t_state)

    def fake_dual_forward(self, call: DualForward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one, many = call.x.x, next(t for t in call.tangents if t is not None)
        out, t_out, state, t_state = (y.new_empty(y.shape) for y in (one, many, one, many))
        return out, t_out, state, t_state

    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        CALLS.append("dual_backward")
        (g,), (h,), (_, gate), (tx, t_gate), w = call.g, call.h, call.x, call.tangents, call.options.w
        (state,), (t_state,) = call.state, call.t_state
        sine, cosine = state.sin(), state.cos()
        dx, d_gate = -w * (h * gate * sine * t_state).sum(0), (h * cosine * t_state).sum(0)
        if t_gate is not None:
            dx = dx + w * (h * t_gate * cosine).sum(0)
        if g is not None:
            dx, d_gate = dx + g * gate * w * cosine, d_gate + g * sine
        d_tx = absent(h) if tx is None else w * h * gate * cosine
        return contiguous(dx, d_gate, d_tx, absent(h) if t_gate is None else h * sine)


def contiguous(*ys: Tensor) -> tuple[Tensor, ...]:
    """Return what the fakes promise, whatever the strides of the operands are."""
    return tuple(y.contiguous() for y in ys)


OP = TwiceDifferentiable(
    "gated_sine",
    x=Primals,
    constants=Constants,
    options=Options,
    state=State,
    functions=GatedSine(),
    batching=JoinBatch(),
    instead="gate * sin(w x)",
)
W = 1.3


def gated_sine(x: Tensor, gate: Tensor, offset: Tensor | None = None) -> Tensor:
    if OP.why_not_compiled() is not None:
        return spelled_out(x, gate, offset)
    return OP(Primals(x, gate), Constants(offset), lambda primals, tangents: (primals, tangents, Options(W, "toy"))).out


def spelled_out(x: Tensor, gate: Tensor, offset: Tensor | None = None) -> Tensor:
    return gate * (W * x).sin() + (0 if offset is None else offset)


def draw(seed: int, *lead: int) -> Tensor:
    return torch.randn(*lead, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, GATE, TX, T_GATE = (draw(seed) for seed in range(4))
PROBLEM = Problem(
    x=(X, GATE),
    t=(TX, T_GATE),
    ts=(draw(4, 4), draw(5, 4)),
    xs=(draw(6, 4), draw(7, 4)),
    w=draw(8),
    ws=draw(9, 4),
)
WITH_A_CONSTANT = {
    "mapped primals": lambda f: vmap(grad(lambda x: f(x, GATE, TX).square().sum()))(draw(9, 4)),
    "mapped constant": lambda f: vmap(lambda c: jvp(lambda x: f(x, GATE, c), (X,), (TX,)))(draw(9, 4)),
}


@pytest.mark.parametrize("mode", MODES)
def test_mode(mode):
    got, want = (tensors(MODES[mode](f, PROBLEM)) for f in (gated_sine, spelled_out))
    for a, b in zip(got, want, strict=True):
        assert_close(a, b, 1e-13)


@pytest.mark.parametrize("position", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_mode_of_one_input(mode, position):
    got, want = (tensors(MODES[mode](*PROBLEM.at((position,), f))) for f in (gated_sine, spelled_out))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-15)


def test_batched_gradients_and_products_with_a_hessian():
    """The same for every op as in tests/ops/attention/test_orders.py."""
    for f in (lambda x: gated_sine(x, GATE).sum(), lambda x: spelled_out(x, GATE).sum()):
        x = X.clone().requires_grad_()
        (first,) = torch.autograd.grad(f(x), x, create_graph=True)
        (hessian,) = torch.autograd.grad(first, x, draw(9, 4), is_grads_batched=True, create_graph=True)
        assert hessian.requires_grad
        assert_close(hessian, -(W**2) * GATE * (W * X).sin() * draw(9, 4), 1e-13)
        product = torch.autograd.functional.hvp(f, X, TX)[1]
        assert_close(product, -(W**2) * GATE * (W * X).sin() * TX, 1e-13)


def test_an_op_counts_no_flops_unless_it_says_so():
    with FlopCounterMode(display=False) as counter:
        gated_sine(X.clone().requires_grad_(), GATE).sum().backward()
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("mode", WITH_A_CONSTANT)
def test_mode_with_a_constant(mode):
    for got, want in zip(*(tensors(WITH_A_CONSTANT[mode](f)) for f in (gated_sine, spelled_out)), strict=True):
        assert_close(got, want, 1e-13)


def test_numerically():
    leaves = [X.clone().requires_grad_(), GATE.clone().requires_grad_()]
    assert torch.autograd.gradcheck(gated_sine, leaves, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(gated_sine, leaves, check_fwd_over_rev=True)


def test_tangents_share_one_pass():
    CALLS.clear()
    vmap(lambda t: jvp(gated_sine, (X, GATE), (t, T_GATE)))(draw(9, 4))
    assert CALLS == ["dual_forward", "forward"]


def test_compiles_in_one_graph():
    torch._dynamo.reset()
    leaves = [X.clone().requires_grad_(), GATE.clone().requires_grad_()]

    def loss(f, x, gate):
        out, tangent = jvp(lambda x: f(x, gate), (x,), (TX,))
        return (out + tangent.square()).sum()

    got = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(gated_sine, *leaves), leaves)
    for a, b in zip(got, torch.autograd.grad(loss(spelled_out, *leaves), leaves)):
        assert_close(a, b, 1e-13)


@pytest.mark.parametrize("step", ["forward", "backward", "dual_forward", "dual_backward"])
def test_custom_ops_are_well_formed(step):
    options, x, tx = (W, "toy"), X.mT.contiguous().mT, TX[None].mT.contiguous().mT
    out, state = OP.forward.op(x, GATE, None, *options)
    dual = OP.dual_forward.op(x, GATE, tx, None, None, *options)
    args = {
        "forward": (x, GATE, None),
        "backward": (x, x, GATE, None, out, state),
        "dual_forward": (x, GATE, tx, None, None),
        "dual_backward": (x, tx, x, GATE, tx, None, None, *dual),
    }
    torch.library.opcheck(getattr(OP, step).op, (*args[step], *options))


def test_compiled_with_inductor_on_strided_operands_and_under_grad():
    torch._dynamo.reset()
    x = X.mT.contiguous().mT
    for call in (lambda f: jvp(f, (x, GATE), (TX, T_GATE)), lambda f: grad(lambda y: f(y, GATE).sum())(x)):
        got = torch.compile(lambda call=call: call(gated_sine), fullgraph=True)()
        for a, b in zip(tensors(got), tensors(call(spelled_out)), strict=True):
            assert_close(a, b, 1e-13)


def test_without_options_nothing_is_kept_alive():
    class NoOptions(NamedTuple):
        pass

    class Bare(GatedSine):
        def forward(self, call):
            return super().forward(call._replace(options=Options(W, "toy")))

        def backward(self, call):
            return super().backward(call._replace(options=Options(W, "toy")))

    groups = {"x": Primals, "constants": Constants, "options": NoOptions, "state": State}
    op = TwiceDifferentiable("bare_sine", **groups, functions=Bare(), batching=JoinBatch(), instead="sin")
    gc.disable()
    out = op(Primals(X.clone().requires_grad_(), GATE), Constants(None), lambda x, t: (x, t, NoOptions())).out
    out.sum().backward()
    alive = weakref.ref(out)
    del out
    gc.enable()
    assert alive() is None


def test_what_is_refused_names_the_op():
    third = grad(lambda x: grad(lambda x: grad(lambda x: gated_sine(x, GATE).sum())(x).sum())(x).sum())
    with pytest.raises(NotImplementedError, match=r"gated_sine has no third derivative.*use gate \* sin"):
        third(X)
    with pytest.raises(NotImplementedError, match="gated_sine does not support forward-mode AD inside forward-mode AD"):
        jvp(lambda x: jvp(lambda x: gated_sine(x, GATE), (x,), (TX,))[1], (X,), (TX,))
    with pytest.raises(NotImplementedError, match=r"with respect to offset .* pass offset.detach\(\)"):
        grad(lambda c: gated_sine(X, GATE, c).sum())(TX)


def test_no_trace_of_attention():
    from fastflow.ops import _batching, _calls, _twice_differentiable

    for module in (_batching, _calls, _twice_differentiable):
        with open(module.__file__) as file:
            assert "attention" not in file.read()
