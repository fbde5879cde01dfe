"""The linear layer, one function for every mode of ``torch.func`` and autograd."""

from typing import Any

import torch
from torch import Tensor

from ..._backend import is_free, requested
from ..._checks import check_floating
from ..._dtypes import after_autocast, autocast_dtype
from ..._torch import own_linear
from .._ordinary import is_ordinary
from .op import OP, Constants, Options, Primals

_CONSTANTS, _OPTIONS = Constants(), Options("aten")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str = "auto") -> Tensor:
    """The linear layer, ``x Wᵀ + b``, whose tangent takes two GEMMs and its gradient four.

    Differentiable to second order in every mode: reverse, forward, each over the other, reverse over reverse, under
    ``vmap`` and ``torch.compile``. Without a tangent it is ``F.linear``. Autocast treats it as ``F.linear``.

    Args:
        x: ``[..., in]``, float16, bfloat16, float32 or float64, any strides.
        weight: ``[out, in]``, in the dtype of x unless autocast casts both.
        bias: ``[out]`` or None, likewise.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``; PyTorch's GEMM serves them all.

    Returns:
        ``[..., out]``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices do not match, or backend is unknown.
        NotImplementedError: a third derivative; forward mode inside forward mode.

    Source: ``kernels/linear/README.md``.
    """
    if not is_free(backend):
        requested(backend)
    if not is_ordinary() or not _fits(weight, bias):
        _check(x, weight, bias)
        return twice_differentiable_linear(x, weight, bias)
    try:
        if not x.is_floating_point() or x.layout != torch.strided:
            _check(x, weight, bias)
        return own_linear(x, weight, bias)
    except (AttributeError, RuntimeError, TypeError):
        _check(x, weight, bias)
        raise


def twice_differentiable_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Call the op on arguments that fit, also where no tangent is active."""
    out = OP(Primals(x, weight, bias), _CONSTANTS, _prepared).out
    return out.reshape(*x.shape[:-1], weight.shape[0])


def _prepared(primals: Any, tangents: Any) -> tuple[Any, Any, Options]:
    """Cast as autocast casts the arguments of ``F.linear``, and give every tensor three axes."""
    return _canonical(*primals), None if tangents is None else _canonical(*tangents), _OPTIONS


def _canonical(x: Any, weight: Any, bias: Tensor | None) -> Primals:
    if x is not None:
        x = _autocast(x).flatten(0, -2).unsqueeze(0) if x.ndim > 1 else _autocast(x)[None, None]
    weight = None if weight is None else _autocast(weight).unsqueeze(0)
    return Primals(x, weight, None if bias is None else _autocast(bias)[None, None])


def _autocast(x: Tensor) -> Tensor:
    return x if autocast_dtype(x.device.type) is None else x.to(after_autocast(x))


def _fits(weight: Tensor, bias: Tensor | None) -> bool:
    """Return False for the shapes of weights and bias that only ``F.linear`` takes."""
    if not isinstance(weight, Tensor) or weight.ndim != 2:
        return False
    return bias is None or (isinstance(bias, Tensor) and bias.shape == weight.shape[:1])


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    operands = {"x": x, "weight": weight} if bias is None else {"x": x, "weight": weight, "bias": bias}
    for name, y in operands.items():
        check_floating(name, y)
    if x.ndim == 0:
        raise ValueError("x must be [..., in], got a scalar")
    if weight.ndim != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(f"weight must be [out, {x.shape[-1]}], got shape {tuple(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias must be [{weight.shape[0]}], got shape {tuple(bias.shape)}")
    for name, y in operands.items():
        if y.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {y.device}")
        if y.dtype != x.dtype and after_autocast(y) != after_autocast(x):
            raise TypeError(f"{name} must have the dtype of x, {x.dtype}, got {y.dtype}")
