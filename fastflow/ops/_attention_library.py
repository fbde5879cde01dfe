"""The attention kernels as custom ops: opaque, functional and traceable. Derivatives live in ``_attention_rules``.

Shapes: q ``[B, Hq, Nq, D]``, k ``[B, Hk, Nk, D]``, v ``[B, Hk, Nk, Dv]``, tangents and cotangents of tangents with a
leading K, mask four-dimensional and broadcastable to ``[B, Hq, Nq, Nk]``. An op cannot return None: what is not wanted
comes back as ``absent``, an empty vector.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from fastflow import _backend
from fastflow.ops import _attention_aten as aten

Quad = tuple[Tensor, Tensor, Tensor, Tensor]
Sextet = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

MAX_HEAD_DIM = 256
_implementations: dict[Any, Callable[..., Any]] = {}


def call(op: Any, *args: Any) -> Any:
    """``op(*args)``, past the dispatcher where nothing maps or traces the arguments: it costs as much as a small
    product. For callers without a graph to record."""
    return (_implementations[op] if _plain(args) else op)(*args)


def _plain(args: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would only pass these on: no transform or mode, no subclass, no zeros left unwritten."""
    if torch._C._len_torch_dispatch_stack():
        return False
    tensors = [x for x in args if isinstance(x, Tensor)]
    keys, plain_keys = torch._C._dispatch_keys, _plain_keys(tensors[0].device.type)
    return all([keys(x) == plain_keys for x in tensors])  # a list: this is run once a product


@functools.cache
def _plain_keys(device: str) -> torch._C.DispatchKeySet:
    with torch.inference_mode(False):
        return torch._C._dispatch_keys(torch.empty(0, device=device))


def _custom_op(name: str) -> Callable[[Callable[..., Any]], Any]:
    def register(implementation: Callable[..., Any]) -> Any:
        op = torch.library.custom_op(name, mutates_args=())(implementation)
        _implementations[op] = implementation
        return op

    return register


def is_absent(x: Tensor) -> bool:
    """Whether an op returned x in place of None."""
    return x.ndim == 1


@_custom_op("fastflow::attention")
def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, backend: str
) -> tuple[Tensor, Tensor]:
    """out ``[B, Hq, Nq, Dv]`` and lse ``[B, Hq, Nq]``."""
    with _full_precision(q):
        if _native(q, k, v, mask, is_causal, backend):
            return aten.forward(q, k, v, mask, scale, is_causal)
        dual_forward = _kernels(backend, q, k, v)[0]
        out, _, lse, _ = dual_forward(
            q, k, v, None, None, None, _expanded(mask, q, k), scale=scale, is_causal=is_causal
        )
    return out, lse


@attention.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, is_causal: bool, backend: str
) -> tuple[Tensor, Tensor]:
    rows = q.shape[:-1]
    lse = q.new_empty(rows, dtype=_row_dtype(q))  # ATen's own fake has it in float32 for float64 (2.11)
    if _native(q, k, v, mask, is_causal, backend):
        return aten.forward(q, k, v, mask, scale, is_causal)[0], lse
    return v.new_empty((*rows, v.shape[-1])), lse


@_custom_op("fastflow::attention_backward")
def attention_backward(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor,
    scale: float, is_causal: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk, dv, each with a leading K, for K cotangents g ``[K, B, Hq, Nq, Dv]`` of out, which share one softmax."""
    with _full_precision(q):
        if len(g) == 1 and _native(q, k, v, mask, is_causal, backend):
            return _stacked(aten.backward(g[0], q, k, v, mask, out, lse, scale, is_causal))
        dual_backward = functools.partial(_kernels(backend, q, k, v)[1], scale=scale, is_causal=is_causal)
        operands = (q, k, v, None, None, None, _expanded(mask, q, k), out, None, lse, None)
        if len(g) == 1:
            return _stacked(dual_backward(g[0], None, *operands)[:3])
        return dual_backward(None, g, *operands, need_tangent_grads=True)[3:]


@attention_backward.register_fake
def _(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, out: Tensor, lse: Tensor,
    scale: float, is_causal: bool, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    if len(g) == 1 and _native(q, k, v, mask, is_causal, backend):
        return _stacked(aten.backward(g[0], q, k, v, mask, out, lse, scale, is_causal))
    return tuple(x.new_empty((len(g), *x.shape)) for x in (q, k, v))  # type: ignore[return-value]


@_custom_op("fastflow::attention_dual")
def attention_dual(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    scale: float, is_causal: bool, backend: str,
) -> Quad:  # fmt: skip
    """out, t_out ``[K, B, Hq, Nq, Dv]``, lse and mu ``[K, B, Hq, Nq]``; at least one tangent is given."""
    with _full_precision(q):
        dual_forward = _kernels(backend, q, k, v)[0]
        return dual_forward(q, k, v, tq, tk, tv, _expanded(mask, q, k), scale=scale, is_causal=is_causal)


@attention_dual.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    scale: float, is_causal: bool, backend: str,
) -> Quad:  # fmt: skip
    tangents = [x for x in (tq, tk, tv) if x is not None]
    num, rows = tangents[0].shape[0], q.shape[:-1]
    dtype = _row_dtype(q, *tangents)
    out = v.new_empty((*rows, v.shape[-1]))
    t_out = tangents[0].new_empty((num, *out.shape))
    return out, t_out, q.new_empty(rows, dtype=dtype), q.new_empty((num, *rows), dtype=dtype)


@_custom_op("fastflow::attention_dual_backward")
def attention_dual_backward(
    g: Tensor | None, h: Tensor, q: Tensor, k: Tensor, v: Tensor,
    tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    out: Tensor, t_out: Tensor | None, lse: Tensor, mu: Tensor | None,
    scale: float, is_causal: bool, backend: str,
) -> Sextet:  # fmt: skip
    """dq, dk, dv, dtq, dtk, dtv for the cotangents g of out, h of t_out; absent where the tangent is."""
    with _full_precision(q):
        dual_backward = _kernels(backend, q, k, v)[1]
        grads = dual_backward(
            g, h, q, k, v, tq, tk, tv, _expanded(mask, q, k), out, t_out, lse, mu,
            scale=scale, is_causal=is_causal,
        )  # fmt: skip
    return tuple(_absent(h) if x is None else x for x in grads)  # type: ignore[return-value]


@attention_dual_backward.register_fake
def _(
    g: Tensor | None, h: Tensor, q: Tensor, k: Tensor, v: Tensor,
    tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    out: Tensor, t_out: Tensor | None, lse: Tensor, mu: Tensor | None,
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


def _kernels(backend: str, q: Tensor, k: Tensor, v: Tensor) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``dual_forward`` and ``dual_backward`` of the implementation that serves this call."""
    if implementation(backend, q, k, v) == "triton":
        from fastflow.kernels.attention.backward import dual_backward
        from fastflow.kernels.attention.forward import dual_forward
    else:
        from fastflow.kernels.attention.reference import dual_backward, dual_forward
    return dual_forward, dual_backward


def _native(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, backend: str) -> bool:
    return _backend.requested(backend) == "auto" and aten.supports(q, k, v, mask, is_causal)


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Inside a kernel nothing is cast: autocast has been applied to the arguments."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()


def _expanded(mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
    return None if mask is None else mask.expand(q.shape[0], q.shape[1], q.shape[2], k.shape[2])


def _stacked(grads: Any) -> Any:
    return tuple(x.unsqueeze(0) for x in grads)


def _row_dtype(*tensors: Tensor) -> torch.dtype:
    return torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32


def _absent(like: Tensor) -> Tensor:
    return like.new_empty(0)
