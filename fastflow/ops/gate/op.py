"""The gated residual as a twice-differentiable op, ``out = x + gate∘y``.

Shapes: x and y ``[G, M, D]``, gate ``[G, 1 or M, D]``; tangents, and cotangents of tangents, with a leading K.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.gate import reference
from .._batching import JoinBatch
from .._calls import Backward, DualBackward, DualForward, Forward
from .._functions import Functions, absent
from .._implementations import module_of
from .._twice_differentiable import TwiceDifferentiable


class Primals(NamedTuple):
    x: Tensor
    gate: Tensor
    y: Tensor


class Constants(NamedTuple):
    """There are none."""


class Options(NamedTuple):
    implementation: str


class GatedAddFunctions(Functions):
    """Each function runs on the implementation that the options name: ``"aten"`` or ``"triton"``."""

    def forward(self, call: Forward) -> tuple[Tensor, ...]:
        return (module_of("gate", call.options.implementation, "forward").forward(*call.x),)

    def fake_forward(self, call: Forward) -> tuple[Tensor, ...]:
        return (call.x.x.new_empty(call.x.x.shape, dtype=reference.result_dtype(*call.x)),)

    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        (g,), (x, gate, y), (want_x, *wants) = call.g, call.x, call.wants
        if call.has_many:  # (7) of kernels/gate/README.md: the gradients of tangents, with g in place of h
            *_, d_gate, dy = module_of("gate", call.options.implementation, "backward").dual_backward(
                None, g, gate, y, None, None, (False, False), wants
            )
        else:
            d_gate, dy, *_ = module_of("gate", call.options.implementation, "backward").dual_backward(
                g, None, gate, y, None, None, wants, (False, False)
            )
        return or_absent(g, _passed_on(g, x) if want_x else None, d_gate, dy)

    def dual_forward(self, call: DualForward) -> tuple[Tensor, ...]:
        return module_of("gate", call.options.implementation, "forward").dual_forward(*call.x, *call.tangents)

    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        (g,), (h,), (x, gate, y), (tx, t_gate, ty) = call.g, call.h, call.x, call.tangents
        (want_x, *wants), (want_tx, *t_wants) = call.wants, call.t_wants
        t_wants = [want and t is not None for want, t in zip(t_wants, (t_gate, ty))]
        d_gate, dy, d_t_gate, d_ty = module_of("gate", call.options.implementation, "backward").dual_backward(
            g, h, gate, y, t_gate, ty, wants, t_wants
        )
        dx = (x.new_zeros(x.shape) if g is None else _passed_on(g, x)) if want_x else None
        d_tx = _passed_on(h, x) if want_tx and tx is not None else None
        return or_absent(h, dx, d_gate, dy, d_tx, d_t_gate, d_ty)

    def plain(self, call: Forward) -> tuple[Tensor, ...] | None:
        return None if call.options.implementation == "triton" else (torch.addcmul(*call.x),)

    def reference(self, call: Forward) -> tuple[Tensor, ...]:
        return (reference.forward(*call.x),)

    def dual_reference(self, call: DualForward) -> tuple[Tensor, ...]:
        return reference.dual_forward(*call.x, *call.tangents)


def _passed_on(cotangent: Tensor, x: Tensor) -> Tensor:
    """Return a cotangent as the gradient of x, the same tensor if it may be."""
    return cotangent.to(x.dtype).contiguous()


def or_absent(like: Tensor, *grads: Tensor | None) -> tuple[Tensor, ...]:
    return tuple(absent(like) if dx is None else dx for dx in grads)


OP = TwiceDifferentiable(
    "gated_add",
    x=Primals,
    constants=Constants,
    options=Options,
    functions=GatedAddFunctions(),
    batching=JoinBatch(),
    instead="x + gate * y",
)
