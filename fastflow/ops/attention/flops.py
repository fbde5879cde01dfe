"""The floating-point operations of attention: two for each multiply-add of its matmuls.

Counted as PyTorch counts its own attention: causal and masked scores in full, the scores again in the backward.
One matmul of a head with N queries, M keys and d columns costs ``2 N M d``.
"""

from collections.abc import Sequence
from typing import Any

from .._calls import Backward, DualBackward, DualForward, Forward


def flops(call: Any) -> int:
    """Return the operations of one call, which has shapes in place of tensors."""
    q, k, v = call.x
    of_keys, of_values = _matmuls(call)
    *heads, num_queries, head_dim = q
    num = 2 * num_queries * k[-2] * (of_keys * head_dim + of_values * v[-1])
    for size in heads:
        num *= size
    return int(num)


def _matmuls(call: Any) -> tuple[int, int]:
    """Return how many matmuls have columns of the keys' width, and how many of the values'."""
    if isinstance(call, Forward):
        return 1, 1  # S; O
    if isinstance(call, Backward):
        K = call.g.out[0] if len(call.g.out) > len(call.x.q) else 1
        return 1 + 2 * K, 2 * K  # S, per cotangent dQ, dK; G Vᵀ, dV
    tq, tk, tv = (t is not None for t in call.tangents)
    has_tS = tq or tk
    if isinstance(call, DualForward):
        K = _num(call.tangents)
        return 1 + K * (tq + tk), 1 + K * (has_tS + tv)  # S, tS; O, (P∘tS) V, P tV
    assert isinstance(call, DualBackward)
    K = call.h.out[0]
    has_g = call.g.out is not None
    wants_dS = has_g or has_tS or tv
    of_keys = 1 + K * (tq + tk) + 2 * wants_dS  # S, tS; dS in dQ and dK
    of_keys += K * (tk + tq) + K * (tq + tk)  # dtS in dQ and dK; dtQ and dtK
    of_values = 2 * has_g + K * tv  # G in B and dV; H tVᵀ in B
    of_values += K * (has_tS + has_tS + tv)  # A; (P∘U)ᵀ H in dV; dtV
    return of_keys, of_values


def _num(tangents: Sequence[Any]) -> int:
    return int(next(t[0] for t in tangents if t is not None))
