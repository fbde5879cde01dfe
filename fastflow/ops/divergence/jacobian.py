"""Many products with one Jacobian: tangents or cotangents ride through the field together."""

import functools
import logging
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from ..._torch import inside_transform
from .._tangents import has_tangent

Field = Callable[[Tensor], Tensor]
Products = Callable[[Tensor], tuple[Tensor, Tensor]]
Mode = Literal["auto", "forward", "reverse"]
Result = TypeVar("Result")

logger = logging.getLogger("fastflow")

_NO_FORWARD_MODE = ("forward AD", "forward mode AD")  # of an ATen op; of an autograd.Function


def jacobian_products(field: Field, x: Tensor, mode: Mode, together: int) -> Products:
    """A function of vectors v ``[K, B, ...]`` that returns ``field(x)`` and J v_k ("forward") or Jᵀ v_k ("reverse").

    A trace does not see the difference. "reverse" evaluates the field once, here, however often the function is called;
    "forward" evaluates it once a call. "auto" is "reverse" on the CPU and wherever gradients are recorded, else
    "forward" (the family's README has the measurements); a field without a forward mode is then taken in reverse.
    together: the usual K.
    """
    _check_recording()
    if mode == "auto":
        mode = _choose(x)
        if mode == "forward" and not torch.compiler.is_compiling():
            return _forward_or_reverse(field, x, together)
    return _reverse(field, x, together) if mode == "reverse" else _forward(field, x)


def _choose(x: Tensor) -> Mode:
    return "reverse" if x.device.type == "cpu" or torch.is_grad_enabled() else "forward"


def gradient(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """``∇ f(x)`` and the second result of function, which returns a scalar f(x) and another tensor."""
    _check_recording()
    if not _on_the_tape(x):
        return torch.func.grad(function, has_aux=True)(x)
    leaf, (value, other) = _record(function, x)
    return _pull(value, leaf, torch.ones_like(value)), _shown(other)


def _forward(field: Field, x: Tensor) -> Products:
    field = _checked(field)

    def products(v: Tensor) -> tuple[Tensor, Tensor]:
        values, out = vmap(lambda tangent: jvp(field, (x,), (tangent,))[:2], randomness="same")(v)
        return values[0], out  # the primal is not batched: values[0] is the one evaluation

    return products


def _reverse(field: Field, x: Tensor, together: int) -> Products:
    field = _checked(field)
    if _on_the_tape(x, together):
        leaf, value = _record(field, x)
        return lambda v: (_shown(value), _pull_each(value, leaf, v.to(value.dtype)))
    value, pull = vjp(field, x)[:2]
    each = vmap(lambda v: pull(v)[0], randomness="same")
    return lambda v: (value, each(v.to(value.dtype)))


def _forward_or_reverse(field: Field, x: Tensor, together: int) -> Products:
    chosen = _forward(field, x)

    def products(v: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal chosen
        try:
            return chosen(v)
        except NotImplementedError as error:
            if not any(sign in str(error) for sign in _NO_FORWARD_MODE):
                raise
            _log_once(str(error).partition("\n")[0])
            chosen = _reverse(field, x, together)
            return chosen(v)

    return products


def _check_recording() -> None:
    """Inference mode records nothing, whatever is asked for: a gradient would be zero, a tangent is refused."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        raise RuntimeError("there are no derivatives under torch.inference_mode(): use torch.no_grad()")


def _on_the_tape(x: Tensor, together: int = 1) -> bool:
    """Whether autograd's tape may serve in place of ``torch.func``.

    It runs the field as any model runs, fused norms and attention included, in two thirds of the time on the CPU. But
    it is eager and does not nest. Where gradients are recorded, x must be in the graph already, and vectors must be
    pulled back one at a time: a batched pull would lose the graph of an ``autograd.Function`` without an error.
    """
    if torch.compiler.is_compiling() or inside_transform() or has_tangent(x):
        return False
    return not torch.is_grad_enabled() or (x.requires_grad and together == 1)


def _record(function: Callable[[Tensor], Result], x: Tensor) -> tuple[Tensor, Result]:
    """The tensor to differentiate in, and function of it on the tape."""
    leaf = x if torch.is_grad_enabled() else x.detach().requires_grad_()
    with torch.enable_grad():
        return leaf, function(leaf)


def _pull_each(value: Tensor, leaf: Tensor, v: Tensor) -> Tensor:
    """``Jᵀ v_k`` for all k: together, or one by one where gradients are recorded."""
    if torch.is_grad_enabled():
        return torch.stack([_pull(value, leaf, one) for one in v])
    return _pull(value, leaf, v, batched=True)


def _pull(value: Tensor, leaf: Tensor, v: Tensor, batched: bool = False) -> Tensor:
    """``Jᵀ v``, zero where value does not depend on leaf."""
    out = None
    if value.requires_grad:
        recorded = torch.is_grad_enabled()
        (out,) = torch.autograd.grad(value, leaf, v, True, recorded, allow_unused=True, is_grads_batched=batched)
    if out is None:
        return leaf.new_zeros((*v.shape[: v.ndim - value.ndim], *leaf.shape))
    return out


def _shown(value: Tensor) -> Tensor:
    """A value on the tape, as the caller may have it."""
    return value if torch.is_grad_enabled() else value.detach()


def _checked(field: Field) -> Field:
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
