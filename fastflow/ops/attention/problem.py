"""Check the arguments of attention and bring them to the one form the op works on."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._checks import check_dense, check_floating, check_number, check_recording, why_not_dense
from ..._dtypes import after_autocast

_MOST_SCALE = torch.finfo(torch.float32).max


class Problem(NamedTuple):
    """Attention in four dimensions, heads second."""

    query: Tensor  # [B, Hq, Nq, D]
    key: Tensor  # [B, Hk, Nk, D]
    value: Tensor  # [B, Hk, Nk, Dv]
    mask: Tensor | None  # [B or 1, Hq or 1, Nq or 1, Nk or 1]
    scale: float
    is_causal: bool
    lead: tuple[int, ...]  # the leading dimensions that B flattens
    out_shape: tuple[int, ...]

    def with_primals(self, query: Tensor, key: Tensor, value: Tensor) -> "Problem":
        return self._replace(query=query, key=key, value=value)


def canonical(
    query: Any, key: Any, value: Any, attn_mask: Any, dropout_p: Any, is_causal: Any, scale: Any, enable_gqa: bool
) -> Problem:
    """Check the arguments of :func:`fastflow.attention` and bring them to four dimensions."""
    check_recording()
    alike = _are_alike(query, key, value)
    if not alike:
        _check_operands(query, key, value)
        _check_heads(query, key, value, enable_gqa)
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else check_number("scale", scale)
    if not torch.compiler.is_compiling() and abs(scale) > _MOST_SCALE and query.dtype != torch.float64:
        raise ValueError(f"scale must be within the range of float32, in which {query.dtype} is scaled, got {scale}")
    if check_number("dropout_p", dropout_p) != 0:
        raise NotImplementedError(
            f"dropout_p must be 0, got {dropout_p}: the fused derivatives have no dropout. Set the model's attention "
            "dropout to 0 (flow models need none), or call F.scaled_dot_product_attention where no JVP is taken"
        )
    for name, flag in (("is_causal", is_causal), ("enable_gqa", enable_gqa)):
        if not isinstance(flag, (bool, torch.SymBool)):
            raise TypeError(f"{name} must be a bool, got {type(flag).__name__}")
    is_causal = bool(is_causal)
    if alike and attn_mask is None:
        shape = tuple(query.shape)
        return Problem(query, key, value, None, scale, is_causal, shape[:1], shape)
    lead = _common_lead(query, key, value)
    rows = (*lead, *query.shape[-3:-1])
    if attn_mask is not None:
        if _is_causal_bias(attn_mask):
            attn_mask, is_triangle = _without_subclass(attn_mask, query, key)
            is_causal = is_causal or is_triangle
        if attn_mask is not None:
            attn_mask = _canonical_mask(attn_mask, query, lead, (*rows, key.shape[-2]))
    out_shape = (*rows, value.shape[-1])
    query, key, value = (four_dimensional(x, lead) for x in (query, key, value))
    return Problem(query, key, value, attn_mask, scale, is_causal, lead, out_shape)


def _are_alike(query: Any, key: Any, value: Any) -> bool:
    """Return True for four-dimensional self-attention, which trainers call and which is quick to check.

    False under tracing, where the comparison of two lengths would be a guard on them.
    """
    if torch.compiler.is_compiling():
        return False
    if not (isinstance(query, Tensor) and isinstance(key, Tensor) and isinstance(value, Tensor)):
        return False
    if why_not_dense(query) or why_not_dense(key) or why_not_dense(value):
        return False
    shape, dtype, device = query.shape, query.dtype, query.device
    return (
        len(shape) == 4
        and shape == key.shape == value.shape
        and dtype == key.dtype == value.dtype
        and device == key.device == value.device
        and dtype.is_floating_point
        and shape[2] > 0 < shape[3]
    )


def canonical_tangents(
    primals: Sequence[Tensor], tangents: Sequence[Any], lead: tuple[int, ...]
) -> tuple[list[Tensor | None], int | None]:
    """Check the tangents of :func:`fastflow.attention_jvp`; return them ``[K, B, H, N, D]``, and K as it was given.

    primals: query, key and value as the caller gave them. K is None if the tangents had no axis for it.
    """
    sizes: dict[str, int | None] = {}
    for name, x, tx in zip(("query", "key", "value"), primals, tangents):
        if tx is None:
            continue
        check_floating(f"{name}_tangent", tx)
        if tx.dtype not in (x.dtype, torch.float32):
            allowed = " or ".join(sorted({str(x.dtype), "torch.float32"}))
            raise TypeError(f"{name}_tangent must have dtype {allowed}, got {tx.dtype}")
        if tx.device != x.device:
            raise ValueError(f"{name}_tangent must be on the device of {name}, {x.device}, got {tx.device}")
        shape = tuple(x.shape)
        if tx.shape != shape and (tx.shape[1:] != shape or tx.shape[0] == 0):
            raise ValueError(
                f"{name}_tangent must have the shape of {name}, {shape}, with or without K >= 1 in front, "
                f"got shape {tuple(tx.shape)}"
            )
        sizes[f"{name}_tangent"] = None if tx.shape == shape else tx.shape[0]
    if not sizes:
        raise ValueError("query_tangent, key_tangent or value_tangent must be a tensor, got None for all three")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"the tangents must all have the same leading axis K, or none, got {sizes}")
    num = next(iter(sizes.values()))
    given = [tx for tx in tangents if tx is not None]
    dtype = given[0].dtype if all(tx.dtype == given[0].dtype for tx in given) else torch.float32
    return [
        None if tx is None else four_dimensional(tx.to(dtype).unsqueeze(0) if num is None else tx.to(dtype), lead, 1)
        for tx in tangents
    ], num


def four_dimensional(x: Tensor, lead: tuple[int, ...], keep: int = 0) -> Tensor:
    """Reshape ``[..., H, N, D]`` to ``[B, H, N, D]`` behind ``keep`` axes that stay; ``[N, D]`` has one head."""
    front, own = x.shape[:keep], x.shape[keep:]
    if len(own) == 2:
        return x.unsqueeze(keep).unsqueeze(keep)
    if len(own) == 4 and own[:1] == lead:
        return x
    return x.expand(*front, *lead, *own[-3:]).reshape(*front, math.prod(lead), *own[-3:])


def _check_operands(query: Any, key: Any, value: Any) -> None:
    for name, x in (("query", query), ("key", key), ("value", value)):
        check_floating(name, x)
        if x.ndim < 2:
            raise ValueError(f"{name} must be [..., H, N, D], got shape {tuple(x.shape)}")
        if x.ndim != query.ndim:
            raise ValueError(f"{name} must have as many dimensions as query, {query.ndim}, got shape {tuple(x.shape)}")
        if x.dtype != query.dtype and after_autocast(x) != after_autocast(query):
            raise TypeError(f"{name} must have the dtype of query, {query.dtype}, got {x.dtype}")
        if x.device != query.device:
            raise ValueError(f"{name} must be on the device of query, {query.device}, got {x.device}")
        if x.shape[-1] == 0:
            raise ValueError(f"{name} must have a head dimension of at least 1, got shape {tuple(x.shape)}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"key must have the head dimension of query, {query.shape[-1]}, got {key.shape[-1]}")
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"value must be as long as key, {key.shape[-2]}, got {value.shape[-2]}")


def _check_heads(query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    if query.ndim == 2:
        return
    heads, heads_k, heads_v = (x.shape[-3] for x in (query, key, value))
    if heads_v != heads_k:
        raise ValueError(f"value must have as many heads as key, {heads_k}, got {heads_v}")
    if enable_gqa and (heads_k == 0 or heads % heads_k != 0):
        raise ValueError(f"key must have a number of heads that divides query's, {heads}, got {heads_k}")
    if not enable_gqa and heads_k not in (heads, 1):
        raise ValueError(f"key must have as many heads as query, {heads}, got {heads_k}; enable_gqa=True shares heads")


def _common_lead(*tensors: Tensor) -> tuple[int, ...]:
    """Broadcast the leading dimensions of ``[..., H, N, D]``."""
    leads = [x.shape[:-3] for x in tensors]
    if all(lead == leads[0] for lead in leads):
        return tuple(leads[0])
    try:
        return tuple(torch.broadcast_shapes(*leads))
    except RuntimeError:
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise ValueError(f"query, key and value must have broadcastable leading dimensions, got {shapes}") from None


def _is_causal_bias(mask: Any) -> bool:
    """Return True for ``torch.nn.attention.bias.CausalBias``; importing it takes time."""
    kind = type(mask)
    return kind is not Tensor and (kind.__module__, kind.__name__) == ("torch.nn.attention.bias", "CausalBias")


def _without_subclass(bias: Any, query: Tensor, key: Tensor) -> tuple[Tensor | None, bool]:
    """Return the mask and is_causal that a CausalBias means: its own memory is uninitialised."""
    Nq, Nk = query.shape[-2], key.shape[-2]
    if (bias.seq_len_q, bias.seq_len_kv) != (Nq, Nk):
        size = (bias.seq_len_q, bias.seq_len_kv)
        raise ValueError(f"attn_mask must be a CausalBias of size {(Nq, Nk)}, got size {size}")
    if bias.variant.name == "UPPER_LEFT" or Nq == Nk:
        return None, True
    return torch.ones(Nq, Nk, dtype=torch.bool, device=query.device).tril(Nk - Nq), False


def _canonical_mask(mask: Any, query: Tensor, lead: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    if not isinstance(mask, Tensor):
        raise TypeError(f"attn_mask must be a tensor, got {type(mask).__name__}")
    check_dense("attn_mask", mask)
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(f"attn_mask must be bool (true attends) or floating point (added), got {mask.dtype}")
    if mask.device != query.device:
        raise ValueError(f"attn_mask must be on the device of query, {query.device}, got {mask.device}")
    if mask.dtype == torch.float64 != query.dtype:  # a finite value must not become -inf, which masks
        finite = mask.clamp(torch.finfo(torch.float32).min, torch.finfo(torch.float32).max)
        mask = torch.where(mask.isinf(), mask, finite).float()
    own = (1,) * (len(shape) - mask.ndim) + tuple(mask.shape)
    if len(own) != len(shape) or any(a not in (1, b) for a, b in zip(own, shape)):
        raise ValueError(f"attn_mask must be broadcastable to {shape}, got shape {tuple(mask.shape)}")
    if query.ndim == 2:
        return mask.reshape(1, 1, *own)
    if len(lead) > 1 and any(size != 1 for size in own[:-3]):
        own = (*lead, *own[-3:])
        mask = mask.expand(own)
    return mask.reshape(math.prod(own[:-3]), *own[-3:])
