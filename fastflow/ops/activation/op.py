"""The activations as one twice-differentiable op, ``out = φ(x) ∘ b``, a missing b being 1.

Shapes: x and b alike, with at least one axis; tangents, and cotangents of tangents, with a leading K.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ..._torch import inside_transform
from ...kernels.activation import reference
from .._batching import JoinBatch
from .._calls import Backward, DualBackward, DualForward, Forward
from .._functions import Functions, absent
from .._implementations import module_of
from .._twice_differentiable import TwiceDifferentiable


class Primals(NamedTuple):
    x: Tensor
    b: Tensor | None


class Constants(NamedTuple):
    """There are none."""


class Options(NamedTuple):
    kind: str  # of reference.KINDS
    implementation: str  # "triton" or "aten"


class ActivationFunctions(Functions):
    def forward(self, call: Forward) -> tuple[Tensor]:
        return (module_of("activation", call.options.implementation, "forward").forward(*call.x, call.options.kind),)

    def fake_forward(self, call: Forward) -> tuple[Tensor]:
        return (call.x.x.new_empty(call.x.x.shape),)

    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        wants = _wanted(call.x, call.wants)
        grads = module_of("activation", call.options.implementation, "backward").backward(
            *call.g, *call.x, call.options.kind, wants
        )
        return tuple(absent(call.x.x) if dx is None else dx for dx in grads)

    def dual_forward(self, call: DualForward) -> tuple[Tensor, Tensor]:
        return module_of("activation", call.options.implementation, "forward").dual_forward(
            *call.x, *call.tangents, call.options.kind
        )

    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        wants, t_wants = _wanted(call.x, call.wants), _wanted(call.tangents, call.t_wants)
        operands = (*call.g, *call.h, *call.x, *call.tangents, call.options.kind)
        grads = module_of("activation", call.options.implementation, "backward").dual_backward(
            *operands, wants, t_wants
        )
        return tuple(absent(call.x.x) if dx is None else dx for dx in grads)

    def plain(self, call: Forward) -> tuple[Tensor] | None:
        """Return None inside a transform, which may map the cotangents, and for a gated activation in Triton.

        Many cotangents share φ' here, and the kernels keep x and b, where autograd would keep φ(x) as well.
        """
        x, b = call.x
        if inside_transform() or (b is not None and call.options.implementation == "triton"):
            return None
        return (native(x, b, call.options.kind),)

    def reference(self, call: Forward) -> tuple[Tensor]:
        x, b = call.x
        return (reference.forward(x, b, call.options.kind),)

    def dual_reference(self, call: DualForward) -> tuple[Tensor, Tensor]:
        (x, b), (tx, tb) = call.x, call.tangents
        return reference.dual_forward(x, b, tx, tb, call.options.kind)


def native(x: Tensor, b: Tensor | None, kind: str) -> Tensor:
    """Compute the op by PyTorch's own functions."""
    if kind == "silu":
        phi = F.silu(x)
    else:
        phi = F.gelu(x, approximate="tanh" if kind == "gelu_tanh" else "none")
    return phi if b is None else phi * b


def _wanted(group: Primals, wants: Primals) -> tuple[bool, ...]:
    return tuple(y is not None and bool(wanted) for y, wanted in zip(group, wants))


OP = TwiceDifferentiable(
    "activation",
    x=Primals,
    constants=Constants,
    options=Options,
    functions=ActivationFunctions(),
    batching=JoinBatch(),
    instead="PyTorch's own function",
)
