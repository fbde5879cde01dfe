"""Many products with one Jacobian: tangents or cotangents ride through the field together."""

import functools
import logging
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

Field = Callable[[Tensor], Tensor]
Products = Callable[[Tensor], tuple[Tensor, Tensor]]
Mode = Literal["auto", "forward", "reverse"]

logger = logging.getLogger("fastflow")


def jacobian_products(field: Field, x: Tensor, mode: Mode) -> Products:
    """A function of vectors v ``[K, B, ...]`` that returns ``field(x)`` and J v_k ("forward") or Jᵀ v_k ("reverse").

    A trace does not see the difference. "reverse" evaluates the field once, here, however often the function is called;
    "forward" evaluates it once a call. "auto" is "reverse" on the CPU and wherever gradients are recorded, else
    "forward" (the family's README has the measurements); a field without a forward mode is then taken in reverse.
    """
    if mode == "auto":
        if x.device.type == "cpu" or torch.is_grad_enabled():
            mode = "reverse"
        elif not torch.compiler.is_compiling():
            return _forward_or_reverse(field, x)
    return _reverse(field, x) if mode == "reverse" else _forward(field, x)


def _forward(field: Field, x: Tensor) -> Products:
    checked = _checked(field, x)

    def products(v: Tensor) -> tuple[Tensor, Tensor]:
        values, out = vmap(lambda tangent: jvp(checked, (x,), (tangent,))[:2], randomness="same")(v)
        return values[0], out  # the primal is not batched: values[0] is the one evaluation

    return products


def _reverse(field: Field, x: Tensor) -> Products:
    value, pull = vjp(_checked(field, x), x)[:2]

    def products(v: Tensor) -> tuple[Tensor, Tensor]:
        return value, vmap(lambda cotangent: pull(cotangent)[0], randomness="same")(v.to(value.dtype))

    return products


def _forward_or_reverse(field: Field, x: Tensor) -> Products:
    chosen = _forward(field, x)

    def products(v: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal chosen
        try:
            return chosen(v)
        except NotImplementedError as error:
            if not any(sign in str(error) for sign in _NO_FORWARD_MODE):
                raise
            _log_once(str(error).partition("\n")[0])
            chosen = _reverse(field, x)
            return chosen(v)

    return products


_NO_FORWARD_MODE = ("forward AD", "forward mode AD")  # of an ATen op; of an autograd.Function


def _checked(field: Field, x: Tensor) -> Field:
    def checked(x: Tensor) -> Tensor:
        value = field(x)
        if not isinstance(value, Tensor):
            raise TypeError(f"field must return a tensor, got {type(value).__name__}")
        if value.shape != x.shape:
            raise ValueError(f"field must return the shape of x, {tuple(x.shape)}, got shape {tuple(value.shape)}")
        return value

    return checked


@functools.cache
def _log_once(reason: str) -> None:
    logger.info("divergence: reverse mode, because the field has no forward mode (%s)", reason)
