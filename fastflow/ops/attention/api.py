"""Softmax attention, one function for every mode of ``torch.func`` and autograd."""

import functools
import logging
from typing import Any

import torch
from torch import Tensor

from ..._checks import is_differentiated
from ..._dtypes import after_autocast, autocast_dtype
from ..._torch import forward_mode_active, inside_transform, own_attention, transforms
from ...kernels.attention import reference
from .op import OP, Constants, Options, Primals
from .problem import Problem, canonical, canonical_tangents
from .select import has_short_rows, select

Tensors = tuple[Any, ...]

logger = logging.getLogger("fastflow")


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    backend: str = "auto",
) -> Tensor:
    """Softmax attention, ``O = softmax(s Q Kᵀ + bias) V``, with the signature and meaning of PyTorch's.

    Differentiable to second order in every mode: reverse, forward, each over the other, reverse over reverse, under
    ``vmap`` and ``torch.compile``. Memory is linear in the lengths. A fully masked row gives zero, and so do zero keys.
    Nested tensors and DTensors go to PyTorch's own attention, which has first-order gradients only.

    Args:
        query: ``[..., Hq, Nq, D]``, float16, bfloat16, float32 or float64, any strides; likewise key and value.
        key: ``[..., Hk, Nk, D]``; leading dimensions broadcast.
        value: ``[..., Hk, Nk, Dv]``.
        attn_mask: broadcastable to ``[..., Hq, Nq, Nk]``; bool (true attends) or floating point (added after scaling,
            -inf allowed), or a ``torch.nn.attention.bias.CausalBias``. A floating point mask that requires grad takes
            quadratic memory.
        dropout_p: must be 0.
        is_causal: query i attends to keys j <= i; together with attn_mask, both must allow it.
        scale: s, by default ``1 / sqrt(D)``; any real number, or a 0-d tensor without a derivative.
        enable_gqa: Hk may be any divisor of Hq, each key head shared by Hq / Hk consecutive query heads.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        O, ``[..., Hq, Nq, Dv]`` in the dtype of value.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices do not match, or the backend cannot run on these tensors.
        NotImplementedError: dropout_p > 0; a third derivative; forward mode inside forward mode.

    Source: Vaswani et al., 1706.03762, eq. 1; the derivatives are derived in ``kernels/attention/README.md``.
    """
    if (type(query) is not Tensor or query.is_nested) and backend == "auto" and _needs_own_attention(query):
        return own_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    problem = canonical(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    primals = Primals(problem.query, problem.key, problem.value)
    reason = _why_written_out(problem)
    if reason is None:
        out = OP(primals, Constants(problem.mask), functools.partial(_prepared, problem, backend)).out
    else:
        if not torch.compiler.is_compiling():
            _log_once(reason)
        select(problem, backend)  # raises if the backend cannot run
        out = _zeros(problem) if _is_empty(problem) else _written_out(problem)
    return out if out.ndim == len(problem.out_shape) else out.reshape(problem.out_shape)


def attention_jvp(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_tangent: Tensor | None = None,
    key_tangent: Tensor | None = None,
    value_tangent: Tensor | None = None,
    *,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Attention and its Jacobian-vector product, ``tO = (P∘(tS − rowsum(P∘tS))) V + P tV``, in one pass.

    Both results are differentiable once more in reverse mode; the gradient flows through the tangent too.

    Args:
        query, key, value, attn_mask, is_causal, scale, enable_gqa, backend: as for :func:`attention`.
        query_tangent: None for zero (its GEMMs are skipped), or the shape of query, or K tangents ``[K, ...]`` that
            share one softmax; in the dtype of query or in float32. Likewise key_tangent and value_tangent.

    Returns:
        O, ``[..., Hq, Nq, Dv]``, and its tangent, with K in front if the tangents have it, in the tangents' dtype.

    Raises:
        TypeError: as :func:`attention`, or a tangent has the wrong dtype.
        ValueError: as :func:`attention`; all three tangents are None, or their shapes do not match.
        NotImplementedError: attn_mask requires grad; a third derivative; inside grad or jvp under torch.compile.

    Source: ``kernels/attention/README.md``.
    """
    problem = canonical(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa)
    tangents, num = canonical_tangents((query, key, value), (query_tangent, key_tangent, value_tangent), problem.lead)
    if torch.compiler.is_compiling() and set(transforms()) - {"Vmap"}:
        raise NotImplementedError(
            "attention_jvp inside grad or jvp cannot be compiled; use attention inside torch.func.jvp"
        )
    problem = problem.with_primals(*_autocast((problem.query, problem.key, problem.value)))
    primals = Primals(problem.query, problem.key, problem.value)
    options = Options(problem.scale, problem.is_causal, select(problem, backend).name)
    shape = problem.out_shape
    t_shape = shape if num is None else (num, *shape)
    if _is_empty(problem):
        out, given = _zeros(problem), [t for t in tangents if t is not None]
        zero = out[..., :0].sum().to(given[0].dtype)
        return out, sum((t[..., :0].sum() for t in given), zero).expand(t_shape).clone()
    (out,), (t_out,) = OP.dual(primals, tangents, Constants(problem.mask), options)
    return out.reshape(shape), t_out.reshape(t_shape)


def _prepared(
    problem: Problem, backend: str, primals: Tensors, tangents: Tensors | None
) -> tuple[Tensors, Tensors | None, Options]:
    """Cast the primals as autocast would and select the implementation.

    On a CPU, copy strided rows here, once; otherwise the forward and the backward would each copy them.
    """
    primals = _autocast(primals)
    problem = problem.with_primals(*primals)
    options = Options(problem.scale, problem.is_causal, select(problem, backend).name)
    if backend == "auto" and problem.query.device.type == "cpu" and not torch.compiler.is_compiling():
        if tangents is not None or has_short_rows(problem):
            primals = tuple(x.contiguous() for x in primals)
        if tangents is not None:
            tangents = tuple(None if t is None else t.contiguous() for t in tangents)
    return primals, tangents, options


def _why_written_out(problem: Problem) -> str | None:
    """Return why this call is written out in PyTorch and left to autograd, or None."""
    if _is_empty(problem):
        return "there is nothing to attend"
    if (reason := OP.why_not_compiled()) is not None:
        return reason
    mask = problem.mask
    if mask is not None and mask.dtype != torch.bool and is_differentiated(mask):
        return "attn_mask is differentiated, and its gradient is as large as the scores"
    return None


def _needs_own_attention(query: Any) -> bool:
    """Return True for the tensors that only PyTorch's own attention takes, nested ones and DTensors, without tangents.

    PyTorch differentiates those once, in reverse mode, and raises where it is asked for more.
    """
    if not isinstance(query, Tensor) or not (query.is_nested or type(query).__name__ == "DTensor"):
        return False
    return not (inside_transform() or forward_mode_active())


def _is_empty(problem: Problem) -> bool:
    return 0 in problem.out_shape or problem.key.shape[2] == 0


def _zeros(problem: Problem) -> Tensor:
    """Return the output where it is empty or has no keys, connected to the graph of every operand."""
    q, k, v = _autocast((problem.query, problem.key, problem.value))
    zero = q[..., :0].sum() + k[..., :0].sum() + v[..., :0].sum()
    return zero.expand(problem.out_shape).clone()


def _written_out(problem: Problem) -> Tensor:
    q, k, v = _autocast((problem.query, problem.key, problem.value))
    mask, is_causal = problem.mask, problem.is_causal
    if mask is not None and is_causal:
        triangle = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
        mask = mask & triangle if mask.dtype == torch.bool else torch.where(triangle, mask, -torch.inf)
        is_causal = False
    return reference.attention(q, k, v, mask, problem.scale, is_causal)


def _autocast(primals: Tensors) -> Tensors:
    """Cast the arguments as autocast does those of PyTorch's own attention."""
    if autocast_dtype(primals[0].device.type) is None:
        return primals
    return tuple(x.to(after_autocast(x)) for x in primals)


@functools.cache
def _log_once(reason: str) -> None:
    logger.info("attention: written out in PyTorch, because %s", reason)
