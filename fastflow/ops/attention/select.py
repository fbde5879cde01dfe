"""Select the implementation of an attention call.

Nothing else decides it: its name is passed on to the fakes and the backward."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ... import _backend
from ..._torch import holds_without_guard
from ...kernels.attention import aten, config, cpu, short
from .problem import Problem


@dataclass(frozen=True)
class Implementation:
    """The functions of one implementation.

    forward: ``(q, k, v, mask, scale, is_causal)`` to ``(out, state)``; mask is broadcastable.
    backward: ``(g, q, k, v, mask, out, state, scale, is_causal)`` to ``(dq, dk, dv)``.
    dual_forward, dual_backward: as in ``kernels/attention/cpu.py``; mask is ``[B, Hq, Nq, Nk]``.
    keeps: state is P ``[B, Hq, Nq, Nk]`` in place of lse ``[B, Hq, Nq]``.
    is_aten: forward and backward are ATen operators, which have fakes of their own.
    """

    name: str
    forward: Callable[..., Any]
    backward: Callable[..., Any]
    dual_forward: Callable[..., Any]
    dual_backward: Callable[..., Any]
    keeps: bool = False
    is_aten: bool = False

    def state_shape(self, q: Tensor, k: Tensor) -> tuple[int, ...]:
        return (*q.shape[:-1], k.shape[2]) if self.keeps else tuple(q.shape[:-1])


def select(problem: Problem, backend: str) -> Implementation:
    """Choose the implementation of one call.

    Without tangents ``"auto"`` takes PyTorch's own fused kernels where they take the input, and whole matmuls for short
    rows on a CPU. Raises a ValueError if Triton is requested and the kernels cannot run.
    """
    q, k, v, mask, is_causal = problem.query, problem.key, problem.value, problem.mask, problem.is_causal
    wanted = _backend.requested(backend)
    kernels = _backend.resolve(backend, "attention", q, k, v)
    if kernels == "triton" and (head_dim := max(q.shape[-1], v.shape[-1])) > (most := _max_head_dim(q)):
        if wanted == "triton":
            raise ValueError(
                f"backend='triton' cannot serve attention: the kernels take head dimensions up to {most} in "
                f"{q.dtype} on this device, not {head_dim}"
            )
        kernels = "reference"
    is_short = has_short_rows(problem)
    if wanted == "auto" and is_short and short.supports(q, k):
        name = "short"
    elif wanted == "auto" and not is_short and aten.supports(q, k, v, mask, problem.scale, is_causal):
        name = "aten+triton" if kernels == "triton" else "aten+blocked"
    elif kernels == "triton":
        name = "triton"
    else:
        name = "blocked, P kept" if is_short else "blocked"
    return IMPLEMENTATIONS[name]


def _max_head_dim(x: Tensor) -> int:
    return config.max_head_dim(config.arch_of(x.device), x.dtype) if x.device.type == "cuda" else config.WIDTHS[-1]


def has_short_rows(problem: Problem) -> bool:
    """Return True on a CPU, without a mask, where P is no larger than q and the output together.

    There matmuls of whole rows are as fast as tiles, and memory stays linear if P is kept. A mask would cost a pass
    over P, which ATen's tiles save.
    """
    q, k, v = problem.query, problem.key, problem.value
    is_unmasked = problem.mask is None and not problem.is_causal
    return q.device.type == "cpu" and is_unmasked and holds_without_guard(k.shape[2] <= q.shape[3] + v.shape[3])


def _without_tangents(dual_forward: Callable[..., Any], dual_backward: Callable[..., Any]) -> dict[str, Any]:
    """Make the pair without tangents of the pair with them."""

    def forward(q: Any, k: Any, v: Any, mask: Any, scale: float, is_causal: bool) -> tuple[Tensor, Tensor]:
        mask = expanded(mask, q, k)
        out, _, state, _ = dual_forward(q, k, v, None, None, None, mask, scale=scale, is_causal=is_causal)
        return out, state

    def backward(
        g: Any, q: Any, k: Any, v: Any, mask: Any, out: Any, state: Any, scale: float, is_causal: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        operands = (q, k, v, None, None, None, expanded(mask, q, k), out, None, state, None)
        dq, dk, dv, *_ = dual_backward(g, None, *operands, scale=scale, is_causal=is_causal)
        return dq, dk, dv

    pair = {"dual_forward": dual_forward, "dual_backward": dual_backward}
    return {"forward": forward, "backward": backward, **pair}


def expanded(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    """Expand a mask to ``[B, Hq, Nq, Nk]``."""
    return None if mask is None else mask.expand(*q.shape[:3], k.shape[2])


def _triton_forward(*args: Any, **options: Any) -> Any:
    from ...kernels.attention.forward import dual_forward  # Triton may be absent

    return dual_forward(*args, **options)


def _triton_backward(*args: Any, **options: Any) -> Any:
    from ...kernels.attention.backward import dual_backward

    return dual_backward(*args, **options)


def _blocked_forward(*args: Any, keep: bool = False, **options: Any) -> Any:
    return cpu.dual_forward(*args, keep=keep, **options)


def _blocked_backward(*args: Any, **options: Any) -> Any:
    return cpu.dual_backward(*args, **options)


def _short_forward(q: Any, k: Any, v: Any, mask: None, scale: float, is_causal: bool) -> Any:
    return short.forward(q, k, v, scale)


def _short_backward(
    g: Any, q: Any, k: Any, v: Any, mask: None, out: Any, state: Any, scale: float, is_causal: bool
) -> Any:
    return short.backward(g, q, k, v, state, scale)


_TRITON = _without_tangents(_triton_forward, _triton_backward)
_BLOCKED = _without_tangents(_blocked_forward, _blocked_backward)
_KEPT = _without_tangents(functools.partial(_blocked_forward, keep=True), _blocked_backward)
_ATEN = {"forward": aten.forward, "backward": aten.backward, "is_aten": True}
_SHORT = {"forward": _short_forward, "backward": _short_backward}

IMPLEMENTATIONS = {
    implementation.name: implementation
    for implementation in (
        Implementation("triton", **_TRITON),
        Implementation("blocked", **_BLOCKED),
        Implementation("blocked, P kept", **_KEPT, keeps=True),
        Implementation("short", **{**_KEPT, **_SHORT}, keeps=True),
        Implementation("aten+triton", **{**_TRITON, **_ATEN}),
        Implementation("aten+blocked", **{**_BLOCKED, **_ATEN}),
    )
}
