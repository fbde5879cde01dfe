"""What the attention ops do under vmap: many tangents or cotangents share one softmax, anything else joins the batch.

``call`` is what to call again, the custom op or the ``apply`` of the ``Function`` that wraps it; ``info``, ``in_dims``
and the arguments are what PyTorch hands to a vmap rule.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from .custom_ops import is_absent

Call = Callable[..., Any]
Dims = Sequence[int | None]
Mapped = tuple[tuple[Any, ...], tuple[int | None, ...]]

_TANGENTS = frozenset(
    ("tq", "tk", "tv", "h", "t_out", "t_state", "dtq", "dtk", "dtv")
)  # [K, B, ...], the others [B, ...]


def attention(call: Call, info: Any, in_dims: Dims, *args: Any) -> Mapped:
    """Rule of ``fastflow::attention``."""
    return _join_batch(call, "q k v mask", "out state", info.batch_size, in_dims, args)


def attention_backward(call: Call, info: Any, in_dims: Dims, *args: Any) -> Mapped:
    """Rule of ``fastflow::attention_backward``: V × K cotangents of one forward are V K cotangents."""
    if any(dim is not None for dim in in_dims[1:7]):
        return _join_batch(call, "h q k v mask out state", "dtq dtk dtv", info.batch_size, in_dims, args)
    grads = call(args[0].movedim(in_dims[0], 0).flatten(0, 1), *args[1:])
    return tuple(x.unflatten(0, (info.batch_size, -1)) for x in grads), (0, 0, 0)


def attention_dual(call: Call, info: Any, in_dims: Dims, *args: Any) -> Mapped:
    """Rule of ``fastflow::attention_dual``: V × K tangents of unmapped primals are V K tangents."""
    size = info.batch_size
    q, k, v, *tangents, mask = args[:7]
    if any(dim is not None for dim in (*in_dims[:3], in_dims[6])):
        return _join_batch(call, "q k v tq tk tv mask", "out t_out state t_state", size, in_dims, args)
    joined = (None if x is None else _mapped(x, dim, 0, size).flatten(0, 1) for x, dim in zip(tangents, in_dims[3:6]))
    out, t_out, state, t_state = call(q, k, v, *joined, mask, *args[7:])
    return (out, t_out.unflatten(0, (size, -1)), state, t_state.unflatten(0, (size, -1))), (None, 0, None, 0)


def attention_dual_backward(call: Call, info: Any, in_dims: Dims, *args: Any) -> Mapped:
    """Rule of ``fastflow::attention_dual_backward``."""
    inputs, outputs = "g h q k v tq tk tv mask out t_out state t_state", "dq dk dv dtq dtk dtv"
    return _join_batch(call, inputs, outputs, info.batch_size, in_dims, args)


def _join_batch(call: Call, inputs: str, outputs: str, size: int, in_dims: Dims, args: Sequence[Any]) -> Mapped:
    """The mapped axis V joins the batch B; a tensor without it is repeated. inputs, outputs: names, in order."""
    names = inputs.split()
    tensors = dict(zip(names, zip(args, in_dims)))
    q, q_dim = tensors["q"]
    batch = q.shape[0] if q_dim is None else q.movedim(q_dim, 0).shape[1]
    joined = (
        _join_mask(x, dim, size, batch) if name == "mask" else _join(x, dim, _batch_axis(name), size)
        for name, (x, dim) in tensors.items()
    )
    results = call(*joined, *args[len(names) :])
    dims = tuple(None if is_absent(y) else _batch_axis(name) for name, y in zip(outputs.split(), results))
    return tuple(y if d is None else y.unflatten(d, (size, -1)) for y, d in zip(results, dims)), dims


def _batch_axis(name: str) -> int:
    return 1 if name in _TANGENTS else 0


def _join(x: Tensor | None, dim: int | None, axis: int, size: int) -> Tensor | None:
    return None if x is None else _mapped(x, dim, axis, size).flatten(axis, axis + 1)


def _join_mask(x: Tensor | None, dim: int | None, size: int, batch: int) -> Tensor | None:
    """A mask is only broadcastable: its batch may be 1, and stays so where nothing maps it."""
    if x is None or (dim is None and x.shape[0] == 1):
        return x
    x = _mapped(x, dim, 0, size)
    return x.expand(size, batch, *x.shape[2:]).flatten(0, 1)


def _mapped(x: Tensor, dim: int | None, to: int, size: int) -> Tensor:
    """x with its mapped axis at ``to``, expanded there if it has none."""
    if dim is not None:
        return x.movedim(dim, to)
    return x.unsqueeze(to).expand(*x.shape[:to], size, *x.shape[to:])
