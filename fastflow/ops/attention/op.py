"""Attention as a twice-differentiable op: its named arguments and its four functions on any implementation.

Shapes: q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``; tangents, and cotangents of tangents, with a
leading K; attn_mask four-dimensional and broadcastable to ``[B, Hq, Nq, Nk]``. ``state`` is lse ``[B, Hq, Nq]``, or P
where the implementation keeps it; ``t_state`` holds its tangents, mu ``[K, B, Hq, Nq]`` or ``P∘(tS − mu)``.
"""

from typing import NamedTuple

from torch import Tensor

from ..._dtypes import at_least_float32
from .._calls import Backward, DualBackward, DualForward, Forward
from .._functions import Functions, absent
from .._twice_differentiable import Out, TwiceDifferentiable
from .batching import JoinMask
from .flops import flops
from .select import IMPLEMENTATIONS, expanded


class Primals(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor


class State(NamedTuple):
    """lse ``[B, Hq, Nq]``, or P where the implementation keeps it."""

    state: Tensor


class Constants(NamedTuple):
    attn_mask: Tensor | None


class Options(NamedTuple):
    scale: float
    is_causal: bool
    implementation: str


class AttentionFunctions(Functions):
    """Each function runs on the implementation that the options name."""

    def forward(self, call: Forward) -> tuple[Tensor, Tensor]:
        scale, is_causal, name = call.options
        return IMPLEMENTATIONS[name].forward(*call.x, *call.constants, scale, is_causal)

    def fake_forward(self, call: Forward) -> tuple[Tensor, Tensor]:
        implementation, (q, k, v) = IMPLEMENTATIONS[call.options.implementation], call.x
        if implementation.is_aten:
            out, lse = self.forward(call)
            return out, lse.to(at_least_float32(q))  # ATen's fake has float32 for float64 (2.11)
        state = q.new_empty(implementation.state_shape(q, k), dtype=at_least_float32(q))
        return v.new_empty((*q.shape[:-1], v.shape[-1])), state

    flops = staticmethod(flops)

    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        scale, is_causal, name = call.options
        if not call.has_many:
            tensors = (*call.g, *call.x, *call.constants, *call.out, *call.state)
            return IMPLEMENTATIONS[name].backward(*tensors, scale, is_causal)
        if len(call.g.out) == 1:
            return tuple(dx.unsqueeze(0) for dx in self.backward(call._replace(g=Out(call.g.out.squeeze(0)))))
        # (13) of kernels/attention/README.md: the backward without tangents is (12) with G in place of H
        operands = (*call.x, None, None, None, _mask(call), *call.out, None, *call.state, None)
        *_, dq, dk, dv = IMPLEMENTATIONS[name].dual_backward(
            None, *call.g, *operands, scale=scale, is_causal=is_causal, need_tangent_grads=True
        )
        return dq, dk, dv

    def fake_backward(self, call: Backward) -> tuple[Tensor, ...]:
        if IMPLEMENTATIONS[call.options.implementation].is_aten and not (call.has_many and len(call.g.out) > 1):
            return self.backward(call)
        return super().fake_backward(call)

    def dual_forward(self, call: DualForward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, is_causal, name = call.options
        tensors = (*call.x, *call.tangents, _mask(call))
        return IMPLEMENTATIONS[name].dual_forward(*tensors, scale=scale, is_causal=is_causal)

    def fake_dual_forward(self, call: DualForward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        q, k, v = call.x
        tangents = [t for t in call.tangents if t is not None]
        num, dtype = tangents[0].shape[0], at_least_float32(q, *tangents)
        state_shape = IMPLEMENTATIONS[call.options.implementation].state_shape(q, k)
        out = v.new_empty((*q.shape[:-1], v.shape[-1]))
        t_out = tangents[0].new_empty((num, *out.shape))
        return out, t_out, q.new_empty(state_shape, dtype=dtype), q.new_empty((num, *state_shape), dtype=dtype)

    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        scale, is_causal, name = call.options
        saved = (*call.out, *call.t_out, *call.state, *call.t_state)
        tensors = (*call.g, *call.h, *call.x, *call.tangents, _mask(call), *saved)
        grads = IMPLEMENTATIONS[name].dual_backward(*tensors, scale=scale, is_causal=is_causal)
        return tuple(absent(call.h.out) if dx is None else dx for dx in grads)


def _mask(call: Backward | DualForward | DualBackward) -> Tensor | None:
    return expanded(call.constants.attn_mask, call.x.q, call.x.k)


OP = TwiceDifferentiable(
    "attention",
    x=Primals,
    constants=Constants,
    options=Options,
    state=State,
    kept=("out",),
    functions=AttentionFunctions(),
    batching=JoinMask(),
    instead="attention written out, softmax(QKᵀ) V,",
)
