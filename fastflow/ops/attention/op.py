"""Attention as a twice-differentiable op: its named arguments and its four functions on any implementation.

Shapes: q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``; tangents, and cotangents of tangents, with a
leading K; attn_mask four-dimensional and broadcastable to ``[B, Hq, Nq, Nk]``. ``state`` is lse ``[B, Hq, Nq]``, or P
where the implementation keeps it; ``t_state`` holds its tangents, mu ``[K, B, Hq, Nq]`` or ``P∘(tS − mu)``.
"""

from typing import NamedTuple

from torch import Tensor

from ..._dtypes import at_least_float32
from .._calls import Backward, DualBackward, DualForward, Forward
from .._twice_differentiable import Functions, TwiceDifferentiable
from .batching import JoinMask
from .select import IMPLEMENTATIONS, expanded


class Primals(NamedTuple):
    q: Tensor
    k: Tensor
    v: Tensor


class Constants(NamedTuple):
    attn_mask: Tensor | None


class Options(NamedTuple):
    scale: float
    is_causal: bool
    implementation: str


def forward(call: Forward) -> tuple[Tensor, Tensor]:
    scale, is_causal, name = call.options
    return IMPLEMENTATIONS[name].forward(*call.x, *call.constants, scale, is_causal)


def fake_forward(call: Forward) -> tuple[Tensor, Tensor]:
    served_by, (q, k, v) = IMPLEMENTATIONS[call.options.implementation], call.x
    if served_by.is_aten:
        out, lse = forward(call)
        return out, lse.to(at_least_float32(q))  # ATen's fake has float32 for float64 (2.11)
    state = q.new_empty(served_by.state_shape(q, k), dtype=at_least_float32(q))
    return v.new_empty((*q.shape[:-1], v.shape[-1])), state


def backward(call: Backward) -> tuple[Tensor, ...]:
    """dq, dk, dv for K cotangents, which share one softmax."""
    scale, is_causal, name = call.options
    if len(call.g) == 1:
        tensors = (call.g.squeeze(0), *call.x, *call.constants, *call.saved)
        grads = IMPLEMENTATIONS[name].backward(*tensors, scale, is_causal)
        return tuple(dx.unsqueeze(0) for dx in grads)
    # the backward without tangents is (12) of kernels/attention/README.md with H := G
    operands = (*call.x, None, None, None, _mask(call), call.saved.out, None, call.saved.state, None)
    *_, dq, dk, dv = IMPLEMENTATIONS[name].dual_backward(
        None, call.g, *operands, scale=scale, is_causal=is_causal, need_tangent_grads=True
    )
    return dq, dk, dv


def fake_backward(call: Backward) -> tuple[Tensor, ...]:
    if len(call.g) == 1 and IMPLEMENTATIONS[call.options.implementation].is_aten:
        return backward(call)
    return tuple(y.new_empty((len(call.g), *y.shape)) for y in call.x)


def dual_forward(call: DualForward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    scale, is_causal, name = call.options
    return IMPLEMENTATIONS[name].dual_forward(*call.x, *call.tangents, _mask(call), scale=scale, is_causal=is_causal)


def fake_dual_forward(call: DualForward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    q, k, v = call.x
    tangents = [t for t in call.tangents if t is not None]
    num, dtype = tangents[0].shape[0], at_least_float32(q, *tangents)
    state_shape = IMPLEMENTATIONS[call.options.implementation].state_shape(q, k)
    out = v.new_empty((*q.shape[:-1], v.shape[-1]))
    t_out = tangents[0].new_empty((num, *out.shape))
    return out, t_out, q.new_empty(state_shape, dtype=dtype), q.new_empty((num, *state_shape), dtype=dtype)


def dual_backward(call: DualBackward) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
    scale, is_causal, name = call.options
    dq, dk, dv, *t_grads = IMPLEMENTATIONS[name].dual_backward(
        call.g, call.h, *call.x, *call.tangents, _mask(call), *call.saved, scale=scale, is_causal=is_causal
    )
    return (dq, dk, dv), tuple(t_grads)


def _mask(call: Backward | DualForward | DualBackward) -> Tensor | None:
    return expanded(call.constants.attn_mask, call.x.q, call.x.k)


OP = TwiceDifferentiable(
    "attention",
    x=Primals,
    constants=Constants,
    options=Options,
    functions=Functions(forward, backward, dual_forward, dual_backward, fake_forward, fake_backward, fake_dual_forward),
    batching=JoinMask(),
    instead="attention written out, softmax(QKᵀ) V,",
)
