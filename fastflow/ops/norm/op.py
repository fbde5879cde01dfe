"""The norms as one twice-differentiable op: its named arguments and its four functions on either implementation.

Shapes: x ``[G, M, D]``; scale and shift ``[G, 1 or M, D]``; tangents, and cotangents of tangents, with a leading K.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.norm import reference
from .._batching import JoinBatch
from .._calls import Backward, DualBackward, DualForward, Forward
from .._functions import Functions, absent
from .._implementations import module_of
from .._twice_differentiable import TwiceDifferentiable


class Primals(NamedTuple):
    x: Tensor
    scale: Tensor | None
    shift: Tensor | None


class NoConstants(NamedTuple):
    pass


class State(NamedTuple):
    """Statistics ``[G, M]`` in a wide dtype; mean is ``[G, 0]`` if the norm does not centre."""

    mean: Tensor
    rstd: Tensor


class Options(NamedTuple):
    """centred: layer norm, else RMS norm. unit: the factor is 1 + scale, else scale. dtype: of out, by name."""

    eps: float
    centred: bool
    unit: bool
    dtype: str
    implementation: str


def canonical(groups: int, operands: Primals, x: Tensor) -> Primals:
    """Shape operands, or tangents of them, as the op takes them: ``[G, M, D]`` and ``[G, 1 or M, D]``."""
    D = x.shape[-1]

    def shaped(y: Any) -> Any:
        if y is None:
            return None
        if y.shape == x.shape:
            return y.reshape(groups, math.prod(x.shape[:-1]) // max(groups, 1), D)
        return y.expand(groups, 1, D) if y.ndim == 1 else y.reshape(groups, 1, D)

    return Primals(*map(shaped, operands))


class NormFunctions(Functions):
    """Each function runs on the implementation that the options name, ``"aten"`` or ``"triton"``."""

    def forward(self, call: Forward) -> tuple[Tensor, ...]:
        return module_of("norm", call.options.implementation, "forward").forward(*call.x, **_numbers(call))

    def fake_forward(self, call: Forward) -> tuple[Tensor, ...]:
        x, wide = call.x.x, reference.wide_dtype(*call.x)
        mean, rstd = (
            x.new_empty((x.shape[0], tokens), dtype=wide)
            for tokens in (x.shape[1] if call.options.centred else 0, x.shape[1])
        )
        return x.new_empty(x.shape, dtype=getattr(torch, call.options.dtype)), mean, rstd

    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        g = call.g.out if call.has_many else call.g.out.unsqueeze(0)
        kinds = {"centred": call.options.centred, "unit": call.options.unit}
        grads = module_of("norm", call.options.implementation, "backward").backward(
            g, *call.x, *call.state, **kinds, wants=_wanted(call.x, call.wants)
        )
        return tuple(absent(g) if dx is None else dx if call.has_many else dx.squeeze(0) for dx in grads)

    def dual_forward(self, call: DualForward) -> tuple[Tensor, ...]:
        return module_of("norm", call.options.implementation, "forward").dual_forward(
            *call.x, *call.tangents, **_numbers(call)
        )

    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        kinds = {"centred": call.options.centred, "unit": call.options.unit}
        wants, t_wants = _wanted(call.x, call.wants), _wanted(call.tangents, call.t_wants)
        tensors = (*call.g, *call.h, *call.x, *call.tangents, *call.state, call.t_state.rstd)
        groups = module_of("norm", call.options.implementation, "backward").dual_backward(
            *tensors, **kinds, wants=wants, t_wants=t_wants
        )
        return tuple(absent(call.h.out) if y is None else y for group in groups for y in group)

    def reference(self, call: Forward) -> tuple[Tensor, ...]:
        return (reference.forward(*call.x, **_numbers(call)),)

    def dual_reference(self, call: DualForward) -> tuple[Tensor, ...]:
        return reference.dual_forward(*call.x, *call.tangents, **_numbers(call))


def _numbers(call: Forward | DualForward) -> dict[str, Any]:
    eps, centred, unit, dtype, _ = call.options
    return {"eps": eps, "centred": centred, "unit": unit, "dtype": getattr(torch, dtype)}


def _wanted(operands: Primals, wants: Primals) -> tuple[bool, ...]:
    return tuple(y is not None and bool(is_wanted) for y, is_wanted in zip(operands, wants))


OP = TwiceDifferentiable(
    "norm",
    x=Primals,
    constants=NoConstants,
    options=Options,
    state=State,
    functions=NormFunctions(),
    batching=JoinBatch(),
    instead="the norm written out, (x - mean) / sqrt(var + eps),",
)
