"""Rotary position embedding, one function for every mode of ``torch.func`` and autograd."""

import functools
from typing import Any

import torch
from torch import Tensor

from ... import _backend
from ..._checks import check_floating, is_differentiated, readable
from ..._torch import unwrapped
from ...kernels.rope import reference
from .op import OP, Constants, Options, Primals


def rope(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, backend: str = "auto") -> Tensor:
    """Rotary position embedding: turn pairs of channels of each token, ``(a, b)`` to ``(a c − b s, a s + b c)``.

    Differentiable in x to second order in every mode: reverse, forward, each over the other, reverse over reverse,
    under ``vmap`` and ``torch.compile``. Derivatives with respect to cos and sin are left to PyTorch.

    Args:
        x: queries or keys, ``[..., N, D]``; float16, bfloat16, float32 or float64, any strides.
        cos: ``[..., N, R/2]`` with R <= D, one entry per pair; its leading axes broadcast to those of x. See
            :func:`fastflow.nn.rope_table`. The last D − R channels pass through.
        sin: the shape of cos.
        interleaved: the pairs are the channels (2i, 2i + 1); otherwise (i, i + R/2), as in Llama.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        A tensor of the shape and dtype of x; the rotation is computed at least in float32.

    Raises:
        TypeError: an argument is no dense floating-point tensor.
        ValueError: shapes or devices do not match, cos holds every angle twice, or the backend cannot run on x.
        NotImplementedError: forward mode inside forward mode.

    Source: Su et al., RoFormer (2104.09864), eq. 34; the derivatives are in ``kernels/rope/README.md``.
    """
    _check(x, cos, sin)
    if OP.why_not_compiled() is not None or is_differentiated(cos) or is_differentiated(sin):
        return reference.forward(x, cos, sin, interleaved)
    primals = Primals(_canonical(x, x.shape[:-2]))
    constants = Constants(*(_canonical(y, x.shape[:-2]) for y in (cos, sin)))
    out = OP(primals, constants, functools.partial(_prepared, interleaved, backend)).out
    return out if x.ndim == 4 else out.reshape(x.shape)


def _prepared(interleaved: bool, backend: str, primals: Any, tangents: Any) -> tuple[Any, Any, Options]:
    chosen = _backend.resolve(backend, "rope", primals[0])
    return primals, tangents, Options(interleaved, "triton" if chosen == "triton" else "aten")


def _check(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    for name, y in (("x", x), ("cos", cos), ("sin", sin)):
        check_floating(name, y)
    if x.ndim < 2:
        raise ValueError(f"x must be [..., N, D], got shape {tuple(x.shape)}")
    *lead, N, D = x.shape
    if cos.ndim < 2 or cos.shape[-2] != N or not 0 < 2 * cos.shape[-1] <= D:
        hint = ""
        if cos.ndim >= 2 and cos.shape[-1] <= D < 2 * cos.shape[-1]:
            hint = f"; of a table that holds every angle twice, pass cos[..., :{cos.shape[-1] // 2}], and sin likewise"
        raise ValueError(f"cos must be [..., {N}, R/2] with R <= {D}, got shape {tuple(cos.shape)}{hint}")
    lead_of_cos = cos.shape[:-2]
    if len(lead_of_cos) > len(lead) or any(n not in (1, m) for n, m in zip(lead_of_cos[::-1], lead[::-1])):
        raise ValueError(
            f"cos must be broadcastable to [{', '.join(map(str, lead))}, N, R/2], got shape {tuple(cos.shape)}"
        )
    if sin.shape != cos.shape:
        raise ValueError(f"sin must have the shape of cos, {tuple(cos.shape)}, got shape {tuple(sin.shape)}")
    for name, y in (("cos", cos), ("sin", sin)):
        if y.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {y.device}")
    if N > 1 and readable(sin):
        _check_halves(unwrapped(sin))


def _check_halves(sin: Tensor) -> None:
    """Refuse a full-width table that is narrow enough to pass for the table of more channels."""
    half = sin.shape[-1] // 2
    if sin.shape[-1] % 2 == 0 and torch.equal(sin[..., :half], sin[..., half:]) and bool(sin.any()):
        raise ValueError(
            f"sin must hold every angle once, got two equal halves; pass sin[..., :{half}], and cos likewise"
        )


def _canonical(x: Tensor, lead: torch.Size) -> Tensor:
    """View x, whose leading axes broadcast to lead, as ``[G or 1, H or 1, ., .]``."""
    if x.ndim == len(lead) + 2 == 4:
        return x
    x = x[(None,) * (len(lead) + 2 - x.ndim)]
    if len(lead) < 2:
        return x.unsqueeze(-3) if lead else x[None, None]
    if len(lead) > 2:
        if any(n != 1 for n in x.shape[:-3]):
            x = x.expand(*lead[:-1], *x.shape[-3:])
        x = x.flatten(0, -4)
    return x
