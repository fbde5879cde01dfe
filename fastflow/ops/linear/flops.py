"""The floating-point operations of the linear layer: two for each multiply-add of its GEMMs."""

import math
from collections.abc import Sequence
from typing import Any

from .._calls import Backward, DualBackward, DualForward, Forward


def flops(call: Any) -> int:
    """Return the operations of one call, which has shapes in place of tensors."""
    return 2 * math.prod(call.x.x) * call.x.weight[-2] * _num_gemms(call)


def _num_gemms(call: Any) -> int:
    if isinstance(call, Forward):
        return 1
    if isinstance(call, Backward):
        K = call.g.out[0] if len(call.g.out) > len(call.x.x) else 1
        return K * (call.wants.x + call.wants.weight)  # (3), (4) of kernels/linear/README.md
    has_tx, has_tw, _ = (t is not None for t in call.tangents)
    if isinstance(call, DualForward):
        return 1 + _num(call.tangents) * (has_tx + has_tw)  # (1), (2)
    assert isinstance(call, DualBackward)
    K, has_g = call.h.out[0], call.g.out is not None
    num = call.wants.x * (has_g + K * has_tw) + call.wants.weight * (has_g + K * has_tx)
    return num + K * (has_tx * call.t_wants.x + has_tw * call.t_wants.weight)  # (5), (6)


def _num(tangents: Sequence[Any]) -> int:
    return int(next(t[0] for t in tangents if t is not None))
