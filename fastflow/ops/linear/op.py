"""The linear layer as a twice-differentiable op: its named arguments and its four functions.

Shapes: x ``[G, M, in]``, weight ``[G, out, in]``, bias ``[G, 1, out]``; tangents with a leading K. G is 1, except where
weights are mapped. The backward reads nothing but the operands.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ...kernels.linear import aten, reference
from .._calls import Backward, DualBackward, DualForward, Forward
from .._functions import Functions, absent
from .._twice_differentiable import TwiceDifferentiable
from .batching import JoinRows
from .flops import flops


class Primals(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None


class Constants(NamedTuple):
    pass


class Options(NamedTuple):
    implementation: str


class LinearFunctions(Functions):
    """PyTorch's GEMMs in eager mode, the written-out reference under torch.compile."""

    def forward(self, call: Forward) -> tuple[Tensor, ...]:
        return aten.forward(*call.x)

    def fake_forward(self, call: Forward) -> tuple[Tensor, ...]:
        return (call.x.x.new_empty((*call.x.x.shape[:-1], call.x.weight.shape[-2])),)

    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        args: tuple[Any, ...] = (*call.g, *call.x, call.wants)
        return _with_absent(call.g.out, aten.backward(*args))

    def dual_forward(self, call: DualForward) -> tuple[Tensor, ...]:
        return aten.dual_forward(*call.x, *call.tangents)

    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        args: tuple[Any, ...] = (*call.g, *call.h, *call.x, *call.tangents, call.wants, call.t_wants)
        return _with_absent(call.h.out, aten.dual_backward(*args))

    def reference(self, call: Forward) -> tuple[Tensor, ...]:
        return reference.forward(*call.x)

    def dual_reference(self, call: DualForward) -> tuple[Tensor, ...]:
        return reference.dual_forward(*call.x, *call.tangents)

    flops = staticmethod(flops)


def _with_absent(like: Tensor, grads: Sequence[Tensor | None]) -> tuple[Tensor, ...]:
    return tuple(absent(like) if dx is None else dx for dx in grads)


OP = TwiceDifferentiable(
    "linear",
    x=Primals,
    constants=Constants,
    options=Options,
    functions=LinearFunctions(),
    batching=JoinRows(),
    instead="x @ weight.mT + bias",
)
