"""Jacobian-vector and vector-Jacobian products for many vectors at once."""

import functools
import logging
from collections.abc import Callable
from contextlib import nullcontext
from typing import TypeVar

import torch
from torch import Tensor
from torch.func import jvp, vjp, vmap

from ..._checks import check_value
from ..._torch import inside_transform
from .._many_cotangents import many_cotangents
from .._tangents import has_tangent
from .graph import check_graph, check_recorded, check_tangent, no_graph_error
from .options import Mode

Field = Callable[[Tensor], Tensor]
Products = Callable[[Tensor], tuple[Tensor, Tensor]]
Result = TypeVar("Result")

logger = logging.getLogger("fastflow")

_LARGEST_COUNTED = (32 << 20) - (16 << 10)
_NO_FORWARD_MODE = ("forward AD", "forward mode AD")  # in the errors of ATen ops and of autograd.Functions


def jacobian_products(field: Field, x: Tensor, mode: Mode, together: int) -> Products:
    """Return a function of vectors v ``[K, B, ...]`` to ``field(x)`` and J v_k ("forward") or Jᵀ v_k ("reverse").

    Both give the same trace. "reverse" evaluates the field here, once for all calls of the function; "forward"
    evaluates it in every call. "auto" is "reverse" on the CPU and wherever gradients are recorded, else "forward", or
    "reverse" if the field has no forward mode. together: the usual K.

    Raises:
        RuntimeError: the field's value does not carry the graph or the tangent that the product needs.
    """
    _check_recording()
    if together > 1 and x.device.type == "cpu" and not torch.compiler.is_compiling():
        _keep_freed_memory()
    if mode == "auto":
        mode = _choose(x)
        if mode == "forward" and not torch.compiler.is_compiling():
            return _forward_or_reverse(field, x, together)
    return _reverse(field, x, together) if mode == "reverse" else _forward(field, x)


def evaluate(field: Field, x: Tensor) -> Tensor:
    """Return ``field(x)``; raise unless it is a floating-point tensor with the shape and the device of x."""
    return check_value("field", field(x), x)


def _choose(x: Tensor) -> Mode:
    return "reverse" if x.device.type == "cpu" or torch.is_grad_enabled() else "forward"


def gradient(function: Callable[[Tensor], tuple[Tensor, Tensor]], x: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``∇ f(x)`` and the second result of function, which returns a scalar f(x) and another tensor."""
    _check_recording()
    if not _tape_can_serve(x):
        return torch.func.grad(function, has_aux=True)(x)
    leaf, (value, other) = _record(function, x)
    pulled = _pull(value, leaf, torch.ones_like(value)) if value.requires_grad else None
    return torch.zeros_like(x) if pulled is None else pulled, _as_recorded(other)


def _forward(field: Field, x: Tensor) -> Products:
    def with_tangent(x: Tensor) -> Tensor:
        value = evaluate(field, x)
        check_tangent(value)
        return value

    def products(v: Tensor) -> tuple[Tensor, Tensor]:
        values, out = vmap(lambda tangent: jvp(with_tangent, (x,), (tangent,))[:2], randomness="same")(v)
        value = values[0]  # the primal is not batched, so there is one evaluation
        check_recorded(value, x)
        return value, out

    return products


def _reverse(field: Field, x: Tensor, together: int) -> Products:
    def with_graph(x: Tensor) -> Tensor:
        value = evaluate(field, x)
        check_graph(value)
        return value

    is_mapped = together > 1 and not torch.compiler.is_compiling()
    if _tape_can_serve(x, together):
        # elsewhere the engine's own threads would checkpoint again without this context, and record another graph
        shared = many_cotangents if is_mapped and x.device.type == "cpu" else nullcontext
        with shared():
            leaf, value = _record(with_graph, x)

        def products(v: Tensor) -> tuple[Tensor, Tensor]:
            with shared():
                return _as_recorded(value), _pull_each(value, leaf, v.to(value.dtype))

        return products
    with many_cotangents() if is_mapped else nullcontext():
        value, pull = vjp(with_graph, x)[:2]
    each = vmap(lambda v: pull(v)[0], randomness="same")
    return lambda v: (value, each(v.to(value.dtype)))


def _forward_or_reverse(field: Field, x: Tensor, together: int) -> Products:
    chosen = _forward(field, x)

    def products(v: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal chosen
        try:
            return chosen(v)
        except NotImplementedError as error:
            if not any(part in str(error) for part in _NO_FORWARD_MODE):
                raise
            _log_once(str(error).partition("\n")[0])
            chosen = _reverse(field, x, together)
            return chosen(v)

    return products


def _check_recording() -> None:
    """Raise under inference mode, which records nothing: gradients would be zero, and tangents raise."""
    if not torch.compiler.is_compiling() and torch.is_inference_mode_enabled():
        raise RuntimeError("there are no derivatives under torch.inference_mode(): use torch.no_grad()")


def _tape_can_serve(x: Tensor, together: int = 1) -> bool:
    """Return True if autograd's tape can be used in place of ``torch.func``.

    It runs the field as in training, with fused norms and attention, and is faster on the CPU. But it is eager and does
    not nest. Where gradients are recorded, x must be in the graph already, and vectors must be pulled back one at a
    time: a batched pullback would silently lose the graph of an ``autograd.Function``.
    """
    if torch.compiler.is_compiling() or inside_transform() or has_tangent(x):
        return False
    return not torch.is_grad_enabled() or (x.requires_grad and together == 1)


def _record(function: Callable[[Tensor], Result], x: Tensor) -> tuple[Tensor, Result]:
    """Return a leaf with the values of x, or x itself where gradients are recorded, and function of it, recorded."""
    leaf = x if torch.is_grad_enabled() else x.detach().requires_grad_()
    with torch.enable_grad():
        return leaf, function(leaf)


def _pull_each(value: Tensor, leaf: Tensor, v: Tensor) -> Tensor:
    """Return ``Jᵀ v_k`` for all k, computed together, or one by one where gradients are recorded."""
    recorded = torch.is_grad_enabled()
    pulled = [_pull(value, leaf, one) for one in v] if recorded else [_pull(value, leaf, v, batched=True)]
    found = [x for x in pulled if x is not None]
    if len(found) < len(pulled):
        raise no_graph_error()
    return torch.stack(found) if recorded else found[0]


def _pull(value: Tensor, leaf: Tensor, v: Tensor, batched: bool = False) -> Tensor | None:
    """Return ``Jᵀ v``, None if the graph of value does not lead to leaf."""
    recorded = torch.is_grad_enabled()
    return torch.autograd.grad(value, leaf, v, True, recorded, allow_unused=True, is_grads_batched=batched)[0]


def _as_recorded(value: Tensor) -> Tensor:
    """Detach a value unless the caller records gradients."""
    return value if torch.is_grad_enabled() else value.detach()


@functools.cache
def _keep_freed_memory() -> None:
    """Let the allocator keep what one chunk frees for the next one.

    glibc returns the free end of its heap to the system once it is larger than twice the largest block freed so far,
    and fresh pages cost as much as the arithmetic on them. Freeing the largest block that counts, of nearly 32 MiB
    (``mallopt(3)``), sets the limit to 64 MiB. Nothing is written to it, so it takes no memory.
    """
    torch.empty(_LARGEST_COUNTED, dtype=torch.uint8, device="cpu")


@functools.cache
def _log_once(reason: str) -> None:
    logger.info("divergence: reverse mode, because the field has no forward mode (%s)", reason)
