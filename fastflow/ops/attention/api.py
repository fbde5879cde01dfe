"""Softmax attention, one function for every mode of ``torch.func`` and autograd."""

import functools
import logging
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..._torch import requires_grad_at_any_level, transforms
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
    ``vmap`` and ``torch.compile``. Memory is linear in the lengths. A fully masked row gives zero.

    Args:
        query: ``[..., Hq, Nq, D]``, float16, bfloat16, float32 or float64, any strides; likewise key and value.
        key: ``[..., Hk, Nk, D]``; leading dimensions broadcast.
        value: ``[..., Hk, Nk, Dv]``.
        attn_mask: broadcastable to ``[..., Hq, Nq, Nk]``; bool (true attends) or floating point (added after scaling,
            -inf allowed). A floating point mask that requires grad takes quadratic memory.
        dropout_p: must be 0.
        is_causal: query i attends to keys j <= i; not together with attn_mask.
        scale: s, by default ``1 / sqrt(D)``.
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
    problem = canonical(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    primals = Primals(problem.query, problem.key, problem.value)
    reason = _why_written_out(problem)
    if reason is None:
        out = OP(primals, Constants(problem.mask), functools.partial(_prepared, problem, backend))
    else:
        if not torch.compiler.is_compiling():
            _log_once(reason)
        select(problem, backend)  # raises if the backend cannot run
        q, k, v = _autocast(primals)
        out = reference.attention(q, k, v, problem.mask, problem.scale, problem.is_causal)
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
    problem = problem.with_primals(*_autocast(Primals(problem.query, problem.key, problem.value)))
    primals = Primals(problem.query, problem.key, problem.value)
    options = Options(problem.scale, problem.is_causal, select(problem, backend).name)
    out, t_out = OP.dual(primals, tangents, Constants(problem.mask), options)
    shape = problem.out_shape
    return out.reshape(shape), t_out.reshape(shape if num is None else (num, *shape))


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
    if 0 in problem.out_shape:
        return "the output is empty"
    if (reason := OP.why_not_compiled()) is not None:
        return reason
    mask = problem.mask
    if mask is not None and mask.dtype != torch.bool and _is_differentiated(mask):
        return "attn_mask is differentiated, and its gradient is as large as the scores"
    return None


def _is_differentiated(x: Tensor) -> bool:
    """Return True if x requires grad at any level of torch.func, or has a tangent at the innermost."""
    # a batched tensor cannot be unpacked; a tangent below it reaches the derivative rules, which raise
    if transforms()[-1:] in ((), ("Jvp",)) and forward_ad.unpack_dual(x).tangent is not None:
        return True
    if torch.compiler.is_compiling():
        return x.requires_grad
    return requires_grad_at_any_level(x) and torch.is_grad_enabled()


def _autocast(primals: Tensors) -> Tensors:
    """Cast the arguments as autocast does those of PyTorch's own attention."""
    device = primals[0].device.type
    if not torch.is_autocast_enabled(device):
        return primals
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in primals)


@functools.cache
def _log_once(reason: str) -> None:
    logger.info("attention: written out in PyTorch, because %s", reason)
