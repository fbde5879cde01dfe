"""Rotary embedding as a twice-differentiable op. It is linear: tangents turn as x does, gradients turn back.

Shapes: x ``[G, H, N, D]``; tangents, and cotangents of tangents, with a leading K; cos and sin
``[G or 1, H or 1, N, R/2]``.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from ...kernels.rope import aten, reference
from .._calls import Backward, DualBackward, DualForward, Forward
from .._functions import Functions, absent
from .._twice_differentiable import TwiceDifferentiable
from ..attention.batching import JoinMask


class Primals(NamedTuple):
    x: Tensor


class Constants(NamedTuple):
    cos: Tensor
    sin: Tensor


class Options(NamedTuple):
    interleaved: bool
    implementation: str  # "triton" or "aten"


class RopeFunctions(Functions):
    def forward(self, call: Forward) -> tuple[Tensor]:
        return (_rotate(call.options)(call.x.x, None, *call.constants, call.options.interleaved, False)[0],)

    def fake_forward(self, call: Forward) -> tuple[Tensor]:
        return (call.x.x.new_empty(call.x.x.shape),)

    def backward(self, call: Backward) -> tuple[Tensor]:
        (g,) = call.g
        one, many = (None, g) if call.has_many else (g, None)
        dx, dxs = _rotate(call.options)(one, many, *call.constants, call.options.interleaved, True)
        return (dxs if call.has_many else dx,)

    def dual_forward(self, call: DualForward) -> tuple[Tensor, Tensor]:
        return _rotate(call.options)(*call.x, *call.tangents, *call.constants, call.options.interleaved, False)

    def dual_backward(self, call: DualBackward) -> tuple[Tensor, Tensor]:
        (g,), (h,), x = call.g, call.h, call.x.x
        g, h = g if call.wants.x else None, h if call.t_wants.x else None
        dx, dtx = _rotate(call.options)(g, h, *call.constants, call.options.interleaved, True)
        if dx is None:
            dx = x.new_zeros(x.shape) if call.wants.x else absent(x)
        return dx, absent(x) if dtx is None else dtx

    def reference(self, call: Forward) -> tuple[Tensor]:
        cos, sin = call.constants
        return (reference.forward(call.x.x, cos, sin, call.options.interleaved),)

    def dual_reference(self, call: DualForward) -> tuple[Tensor, Tensor]:
        cos, sin = call.constants
        return reference.dual_forward(call.x.x, call.tangents.x, cos, sin, call.options.interleaved)


def _rotate(options: Options) -> Callable[..., Any]:
    if options.implementation != "triton":
        return aten.rotate
    from ...kernels.rope.rotate import rotate  # Triton may be absent

    return rotate


OP = TwiceDifferentiable(
    "rope",
    x=Primals,
    constants=Constants,
    options=Options,
    functions=RopeFunctions(),
    batching=JoinMask(),
    instead="the rotation written out",
)
