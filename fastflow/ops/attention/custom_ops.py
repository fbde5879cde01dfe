"""The attention kernels as custom ops: opaque, functional and traceable. Derivatives live in ``_attention_rules``.

Shapes: q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``, tangents and cotangents of tangents with a
leading K, mask four-dimensional and broadcastable to ``[B, Hq, Nq, Nk]``. An op cannot return None: what is not wanted
comes back as ``absent``, an empty vector.

``state`` is what a backward wants to know of the softmax: lse ``[B, Hq, Nq]``, or P ``[B, Hq, Nq, Nk]`` where rows are
short (:func:`has_short_rows`) and no kernel serves. ``t_state`` are its tangents: mu ``[K, B, Hq, Nq]``, or
``P∘(tS − mu)``.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ... import _backend
from ...kernels.attention import aten, short
from .._custom_op import custom_op

Quad = tuple[Tensor, Tensor, Tensor, Tensor]
Sextet = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

MAX_HEAD_DIM = 256
_NOTHING: AbstractContextManager[object] = nullcontext()


def is_absent(x: Tensor) -> bool:
    """Whether an op returned x in place of None."""
    return x.ndim == 1


@custom_op("attention")
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """out ``[B, Hq, Nq, Dv]`` and state."""
    with _full_precision(q):
        if _is_short(q, k, v, mask, is_causal, backend):
            return short.forward(q, k, v, scale)
        if _native(q, k, v, mask, is_causal, backend):
            return aten.forward(q, k, v, mask, scale, is_causal)
        dual_forward = _kernels(backend, q, k, v, mask, is_causal)[0]
        out, _, state, _ = dual_forward(
            q, k, v, None, None, None, _expanded(mask, q, k), scale=scale, is_causal=is_causal
        )
    return out, state


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, backend: str
) -> tuple[Tensor, Tensor]:
    dtype = _row_dtype(q)
    if _native(q, k, v, mask, is_causal, backend):
        out, lse = aten.forward(q, k, v, mask, scale, is_causal)
        return out, lse.to(dtype)  # ATen's own fake has it in float32 for float64 (2.11)
    return v.new_empty((*q.shape[:-1], v.shape[-1])), q.new_empty(
        _state_shape(q, k, v, mask, is_causal, backend), dtype=dtype
    )


@custom_op("attention_backward")
def attention_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, state: Tensor,
    scale: float, is_causal: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, each with a leading K, for K cotangents g ``[K, B, Hq, Nq, Dv]`` of out, which share one softmax."""
    args = (q, k, v, mask, out, state, scale, is_causal, backend)
    if len(g) == 1:
        return tuple(x.unsqueeze(0) for x in backward_of_one(g.squeeze(0), *args))  # type: ignore[return-value]
    with _full_precision(q):
        dual_backward = _kernels(backend, q, k, v, mask, is_causal)[1]
        operands = (q, k, v, None, None, None, _expanded(mask, q, k), out, None, state, None)
        return dual_backward(None, g, *operands, scale=scale, is_causal=is_causal, need_tangent_grads=True)[3:]


def backward_of_one(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, state: Tensor,
    scale: float, is_causal: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv for one cotangent g of out, without any K. For tensors that are plain."""
    with _full_precision(q):
        if _is_short(q, k, v, mask, is_causal, backend):
            return short.backward(g, q, k, v, state, scale)
        if _native(q, k, v, mask, is_causal, backend):
            return aten.backward(g, q, k, v, mask, out, state, scale, is_causal)
        dual_backward = _kernels(backend, q, k, v, mask, is_causal)[1]
        operands = (q, k, v, None, None, None, _expanded(mask, q, k), out, None, state, None)
        return dual_backward(g, None, *operands, scale=scale, is_causal=is_causal)[:3]


@attention_backward.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, state: Tensor,
    scale: float, is_causal: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if len(g) == 1 and _native(q, k, v, mask, is_causal, backend):
        grads = aten.backward(g.squeeze(0), q, k, v, mask, out, state, scale, is_causal)
        return tuple(x.unsqueeze(0) for x in grads)  # type: ignore[return-value]
    return tuple(x.new_empty((len(g), *x.shape)) for x in (q, k, v))  # type: ignore[return-value]


@custom_op("attention_dual")
def attention_dual(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    scale: float, is_causal: bool, backend: str,
) -> Quad:  # fmt: skip
    """out, t_out ``[K, B, Hq, Nq, Dv]``, state and t_state; at least one tangent is given."""
    with _full_precision(q):
        dual_forward = _kernels(backend, q, k, v, mask, is_causal)[0]
        return dual_forward(q, k, v, tq, tk, tv, _expanded(mask, q, k), scale=scale, is_causal=is_causal)


@attention_dual.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    scale: float, is_causal: bool, backend: str,
) -> Quad:  # fmt: skip
    tangents = [x for x in (tq, tk, tv) if x is not None]
    num, state_shape = tangents[0].shape[0], _state_shape(q, k, v, mask, is_causal, backend)
    dtype = _row_dtype(q, *tangents)
    out = v.new_empty((*q.shape[:-1], v.shape[-1]))
    t_out = tangents[0].new_empty((num, *out.shape))
    return out, t_out, q.new_empty(state_shape, dtype=dtype), q.new_empty((num, *state_shape), dtype=dtype)


@custom_op("attention_dual_backward")
def attention_dual_backward(
    g: Tensor | None, h: Tensor, q: Tensor, k: Tensor, v: Tensor,
    tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    out: Tensor, t_out: Tensor | None, state: Tensor, t_state: Tensor | None,
    scale: float, is_causal: bool, backend: str,
) -> Sextet:  # fmt: skip
    """dq, dk, dv, dtq, dtk, dtv for the cotangents g of out, h of t_out; absent where the tangent is."""
    with _full_precision(q):
        dual_backward = _kernels(backend, q, k, v, mask, is_causal)[1]
        grads = dual_backward(
            g, h, q, k, v, tq, tk, tv, _expanded(mask, q, k), out, t_out, state, t_state,
            scale=scale, is_causal=is_causal,
        )  # fmt: skip
    return tuple(_absent(h) if x is None else x for x in grads)  # type: ignore[return-value]


@attention_dual_backward.register_fake
def _(
    g: Tensor | None, h: Tensor, q: Tensor, k: Tensor, v: Tensor,
    tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    out: Tensor, t_out: Tensor | None, state: Tensor, t_state: Tensor | None,
    scale: float, is_causal: bool, backend: str,
) -> Sextet:  # fmt: skip
    return tuple(_absent(h) if x is None else x.new_empty(x.shape) for x in (q, k, v, tq, tk, tv))  # type: ignore


def implementation(backend: str, q: Tensor, k: Tensor, v: Tensor) -> str:
    """``"triton"`` or ``"reference"``; raises where the caller asked for what cannot serve."""
    chosen = _backend.resolve(backend, "attention", q, k, v)
    if chosen == "triton" and max(q.shape[-1], v.shape[-1]) > MAX_HEAD_DIM:
        if backend == "triton":
            raise ValueError(
                f"backend='triton' cannot serve attention: the kernels take head dimensions up to {MAX_HEAD_DIM}, "
                f"not {max(q.shape[-1], v.shape[-1])}"
            )
        return "reference"
    return chosen


def _kernels(
    backend: str, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``dual_forward`` and ``dual_backward`` of the implementation that serves this call."""
    if implementation(backend, q, k, v) == "triton":
        from ...kernels.attention.backward import dual_backward
        from ...kernels.attention.forward import dual_forward

        return dual_forward, dual_backward
    from ...kernels.attention import cpu as reference

    return functools.partial(
        reference.dual_forward, keep=has_short_rows(q, k, v, mask, is_causal)
    ), reference.dual_backward


def has_short_rows(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool) -> bool:
    """Whether P is no larger than q and the output together, without any mask and on a CPU.

    There products of whole rows serve as well as tiles of them, and memory stays linear where P is kept. A mask would
    be a pass over P of its own, which ATen's tiles save.
    """
    return q.device.type == "cpu" and mask is None and not is_causal and k.shape[2] <= q.shape[3] + v.shape[3]


def _state_shape(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, backend: str
) -> tuple[int, ...]:
    keeps = has_short_rows(q, k, v, mask, is_causal) and implementation(backend, q, k, v) == "reference"
    return (*q.shape[:-1], k.shape[2]) if keeps else tuple(q.shape[:-1])


def _is_short(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, backend: str) -> bool:
    """Whether products of whole rows serve attention without tangents."""
    if not has_short_rows(q, k, v, mask, is_causal) or _backend.requested(backend) != "auto":
        return False
    return short.supports(q, k)


def _native(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, backend: str) -> bool:
    """Whether ATen's fused kernels serve attention without tangents."""
    if _backend.requested(backend) != "auto" or has_short_rows(q, k, v, mask, is_causal):
        return False
    return aten.supports(q, k, v, mask, is_causal)


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Inside a kernel nothing is cast: autocast has been applied to the arguments."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else _NOTHING


def _expanded(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    return None if mask is None else mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


def _row_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _absent(like: Tensor) -> Tensor:
    return like.new_empty(0)
