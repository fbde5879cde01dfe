"""The gated residual and the norm that follows it as one twice-differentiable op.

``sum = x + gate∘y`` and ``normed = norm(sum)∘s + shift``, s being 1 + scale or scale. Shapes: x and y ``[G, M, D]``;
gate, scale and shift ``[G, 1 or M, D]``; tangents, and cotangents of tangents, with a leading K.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.gate import reference
from ...kernels.gate.norm_operands import NormOperands
from ...kernels.norm.reference import wide_dtype
from .._batching import JoinBatch
from .._calls import Backward, DualBackward, DualForward, Forward
from .._functions import Functions
from .._implementations import module_of
from .._twice_differentiable import TwiceDifferentiable
from ..norm import op as norm
from ..norm.plain import plain_norm
from .op import Constants, or_absent


class NormPrimals(NamedTuple):
    x: Tensor
    gate: Tensor
    y: Tensor
    scale: Tensor | None
    shift: Tensor | None


class NormOutputs(NamedTuple):
    sum: Tensor
    normed: Tensor


class Statistics(NamedTuple):
    """Of the rows of sum, in a wide dtype."""

    mean: Tensor  # [G, M], or [G, 0] if the norm does not centre
    rstd: Tensor  # [G, M]


class NormOptions(NamedTuple):
    """centred: layer norm, else RMS norm; unit: s is 1 + scale; dtype: of normed."""

    eps: float
    centred: bool
    unit: bool
    dtype: str
    implementation: str


_NOTHING = (False,) * 5


class GatedNormFunctions(Functions):
    """Each function runs on the implementation that the options name: ``"aten"`` or ``"triton"``."""

    def forward(self, call: Forward) -> tuple[Tensor, ...]:
        return module_of("gate", call.options.implementation, "norm_forward").norm_forward(
            *call.x, **_forward_options(call)
        )

    def fake_forward(self, call: Forward) -> tuple[Tensor, ...]:
        x, options = call.x.x, call.options
        total = x.new_empty(x.shape, dtype=reference.result_dtype(*call.x[:3]))
        G, M, wide = x.shape[0], x.shape[1], wide_dtype(total, call.x.scale, call.x.shift)
        statistics = (x.new_empty((G, n), dtype=wide) for n in (M if options.centred else 0, M))
        return total, x.new_empty(x.shape, dtype=getattr(torch, options.dtype)), *statistics

    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        if not call.has_many:
            return _gradients(call, (*call.g, None, None), call.wants, _NOTHING)[:5]
        # (7) of kernels/gate/README.md: the gradients of tangents, with g in place of h
        return _gradients(call, (None, None, *call.g), _NOTHING, call.wants)[5:]

    def dual_forward(self, call: DualForward) -> tuple[Tensor, ...]:
        return module_of("gate", call.options.implementation, "norm_forward").norm_dual_forward(
            *call.x, *call.tangents, **_forward_options(call)
        )

    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        t_wants = [want and t is not None for want, t in zip(call.t_wants, call.tangents)]
        t_sum = None if all(t is None for t in call.tangents[:3]) else call.t_out.sum
        return _gradients(call, (*call.g, *call.h), call.wants, t_wants, (t_sum, *call.tangents[1:]), call.t_state.rstd)

    def plain(self, call: Forward) -> tuple[Tensor, ...] | None:
        """Leave ordinary training on a CPU to PyTorch's addcmul and to the norm, whose own kernels are as fast."""
        x, gate, y, scale, shift = call.x
        if call.options.implementation == "triton":
            return None
        total = torch.addcmul(x, gate, y)
        operands, options = norm.Primals(total, scale, shift), norm.Options(*call.options)
        normed = plain_norm(operands, len(total), options)
        if normed is None:
            normed = norm.OP.without_tangents(Forward(operands, norm.NoConstants(), options)).out
        return total, normed

    def reference(self, call: Forward) -> tuple[Tensor, ...]:
        return reference.norm_forward(*call.x, **_forward_options(call))

    def dual_reference(self, call: DualForward) -> tuple[Tensor, ...]:
        return reference.norm_dual_forward(*call.x, *call.tangents, **_forward_options(call))


def _gradients(
    call: Backward | DualBackward,
    cotangents: Any,
    wants: Any,
    t_wants: Any,
    tangents: Any = (None,) * 5,
    t_rstd: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Return the gradients of x and of its tangents, :func:`absent` for those not wanted."""
    x, gate, y, scale, shift = call.x
    wants = [want and z is not None for want, z in zip(wants, call.x)]
    t_wants = [want and z is not None for want, z in zip(t_wants, call.x)]
    operands = NormOperands._make((*cotangents, call.out.sum, gate, y, scale, shift, *tangents, *call.state, t_rstd))
    options = {"centred": call.options.centred, "unit": call.options.unit}
    grads = list(
        module_of("gate", call.options.implementation, "norm_backward").norm_dual_backward(
            operands, wants=wants, t_wants=t_wants, **options
        )
    )
    for i in (0, 5):
        grads[i] = None if grads[i] is None else grads[i].to(x.dtype).contiguous()
    return or_absent(x, *grads)


def _forward_options(call: Forward | DualForward) -> dict[str, Any]:
    eps, centred, unit, dtype, _ = call.options
    return {"eps": eps, "centred": centred, "unit": unit, "dtype": getattr(torch, dtype)}


FUNCTIONS = GatedNormFunctions()
NORM_OP = TwiceDifferentiable(
    "gated_add_norm",
    x=NormPrimals,
    outputs=NormOutputs,
    state=Statistics,
    kept=("sum",),
    constants=Constants,
    options=NormOptions,
    functions=FUNCTIONS,
    batching=JoinBatch(),
    instead="x + gate * y and a norm written out",
)
