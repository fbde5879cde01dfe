"""Softmax attention with every derivative: one function for every mode of ``torch.func`` and of autograd."""

import functools
import logging
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from ..._torch import inside_transform, one_level_down, requires_grad_at_any_level, transforms
from . import custom_ops as library
from . import spelled_out
from .problem import Problem, canonical, canonical_tangents
from .rules import AttentionDualFunction, AttentionFunction, run, single

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
            -inf allowed). A floating point mask that requires grad is served by attention with quadratic memory.
        dropout_p: must be 0.
        is_causal: query i attends to keys j <= i; not together with attn_mask.
        scale: s, by default ``1 / sqrt(D)``.
        enable_gqa: Hk may be any divisor of Hq, each key head shared by Hq / Hk consecutive query heads.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        O, ``[..., Hq, Nq, Dv]`` in the dtype of value.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices that do not fit, a backend that cannot serve.
        NotImplementedError: dropout_p > 0; a third derivative; forward mode inside forward mode.

    Source: Vaswani et al., 1706.03762, eq. 1; the derivatives are derived in ``kernels/attention/README.md``.
    """
    x = canonical(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    primals: tuple[Tensor, ...] = (x.query, x.key, x.value)
    if backend != "auto":
        library.implementation(backend, x.query, x.key, x.value)
    options = (x.mask, x.scale, x.is_causal, backend)
    compiling = torch.compiler.is_compiling()
    reason = _why_spelled_out(x, compiling)
    if reason is not None:
        if not compiling:
            _log_once(reason)
        q, k, v = _autocast(*primals)
        out = spelled_out.attention(q, k, v, *options[:-1])
    elif (duals := _unpacked(*primals)) is not None:
        primals, tangents = duals
        dual = _dual if compiling else one_level_down(_dual)
        out = forward_ad.make_dual(*dual(*_autocast(*primals), *tangents, *options))
    else:
        plain = library.attention if compiling else _plain
        out, _ = plain(*_autocast(*primals), *options)
    return out if out.ndim == len(x.out_shape) else out.reshape(x.out_shape)


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
        query_tangent: None for zero (its products are skipped), or the shape of query, or K tangents ``[K, ...]`` that
            share one softmax; in the dtype of query or in float32. Likewise key_tangent and value_tangent.

    Returns:
        O, ``[..., Hq, Nq, Dv]``, and its tangent, with K in front where the tangents have it, in the tangents' dtype.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`attention`; no tangent at all; an attn_mask that requires
            grad.

    Source: ``kernels/attention/README.md``.
    """
    x = canonical(query, key, value, attn_mask, 0.0, is_causal, scale, enable_gqa)
    library.implementation(backend, x.query, x.key, x.value)
    tangents, num = canonical_tangents((query, key, value), (query_tangent, key_tangent, value_tangent), x.lead)
    call = library.attention_dual if torch.compiler.is_compiling() else functools.partial(run, AttentionDualFunction)
    if torch.compiler.is_compiling() and set(transforms()) - {"Vmap"}:
        raise NotImplementedError(
            "attention_jvp inside grad or jvp cannot be compiled; use attention inside torch.func.jvp"
        )
    primals = _autocast(x.query, x.key, x.value)
    out, t_out, *_ = call(*primals, *tangents, x.mask, x.scale, x.is_causal, backend)
    return out.reshape(x.out_shape), t_out.reshape(*(() if num is None else (num,)), *x.out_shape)


class replace_sdpa(TorchFunctionMode):  # noqa: N801
    """Inside this context ``F.scaled_dot_product_attention`` is :func:`attention`, however a model imported it.

    >>> with replace_sdpa():
    ...     out, out_tangent = torch.func.jvp(model, (x,), (v,))

    backend: as for :func:`attention`.
    """

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}), backend=self.backend)
        return func(*args, **(kwargs or {}))


def _unpacked(*primals: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]] | None:
    """Primals and tangents where one pass computes both; None elsewhere.

    That is where the innermost torch.func transform is a jvp. A bare ``forward_ad.dual_level`` keeps its dual tensors,
    because somebody may ask for the tangent of a gradient. Under torch.compile duals are unpacked everywhere, because
    Dynamo drops the ``jvp`` of a ``Function`` in silence (pytorch#192985).
    """
    if not torch.compiler.is_compiling() and (not inside_transform() or transforms()[-1] != "Jvp"):
        return None
    duals = [forward_ad.unpack_dual(x) for x in primals]
    if all(x.tangent is None for x in duals):
        return None
    return tuple(x.primal for x in duals), tuple(x.tangent for x in duals)


def _plain(*args: Any) -> tuple[Tensor, Tensor]:
    """O and the state. args: those of ``fastflow::attention``."""
    q, k, v, mask, scale, is_causal, backend = args
    if backend == "auto" and library.has_short_rows(q, k, v, mask, is_causal):
        q, k, v = _packed(q, k, v)
    return run(AttentionFunction, q, k, v, mask, scale, is_causal, backend)


def _dual(*args: Any) -> tuple[Tensor, Tensor]:
    """O and its tangent in its dtype. args: primals, a tangent of each or None, mask, scale, is_causal, backend."""
    primals, tangents, options = args[:3], single(*args[3:6]), args[6:]
    if torch.compiler.is_compiling():
        out, t_out, *_ = library.attention_dual(*primals, *tangents, *options)
    else:
        if options[-1] == "auto" and primals[0].device.type == "cpu":
            primals, tangents = _packed(*primals), _packed(*tangents)
        out, t_out, *_ = run(AttentionDualFunction, *primals, *tangents, *options)
    return out, t_out.squeeze(0).to(out.dtype)


def _packed(*tensors: Any) -> tuple[Any, ...]:
    """Contiguous, where products of whole rows would copy them, and copy them again in the backward."""
    return tuple([None if x is None else x.contiguous() for x in tensors])


def _why_spelled_out(x: Problem, compiling: bool) -> str | None:
    """Why this call is left to autograd, or None."""
    if 0 in x.out_shape:
        return "the output is empty"
    if compiling:
        *outer, innermost = transforms() or ("Jvp",)
        if innermost != "Jvp" or set(outer) - {"Vmap"}:
            return "under torch.compile the custom ops serve one jvp innermost and vmap around it, no other transform"
    if x.mask is not None and x.mask.dtype != torch.bool and _is_differentiated(x.mask):
        return "attn_mask is differentiated, and its gradient is as large as the scores"
    return None


def _is_differentiated(x: Tensor) -> bool:
    """Whether x requires grad at any level of torch.func, or has a tangent at the innermost."""
    # a batched tensor cannot be unpacked; a tangent below it is caught by the rules, which raise
    if transforms()[-1:] in ((), ("Jvp",)) and forward_ad.unpack_dual(x).tangent is not None:
        return True
    if torch.compiler.is_compiling():
        return x.requires_grad
    return requires_grad_at_any_level(x) and torch.is_grad_enabled()


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does to the arguments of PyTorch's own attention."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


@functools.cache
def _log_once(reason: str) -> None:
    logger.info("attention: spelled out in PyTorch, because %s", reason)
