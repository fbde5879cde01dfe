"""Argument checks. A message names the argument, what it must be and what was given."""

import functools
import math
import numbers
import operator
import os
from typing import Any, Protocol, SupportsIndex, get_args

import torch
from torch import Tensor

from ._dtypes import at_least_float32
from ._torch import unwrapped


class HasDomain(Protocol):
    """Anything with a closed interval of times on which it is defined."""

    @property
    def domain(self) -> tuple[float, float]: ...


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise a ValueError unless value is one of the choices, given as a tuple or as a ``Literal``."""
    known = choices if isinstance(choices, tuple) else get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_number(name: str, value: object) -> float:
    """Return value as a float; raise a TypeError unless it is a real number, a ValueError unless it is finite."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value}")
    return float(value)


def check_count(name: str, value: SupportsIndex) -> int:
    """Return value as an int; raise a TypeError unless it is one, a ValueError if it is below 1."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if operator.index(value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return operator.index(value)


def check_floating(name: str, x: object) -> Tensor:
    """Return x; raise a TypeError unless it is a real floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating point dtype, got {x.dtype}")
    return x


def check_batched(name: str, x: object) -> Tensor:
    """Return x; raise unless it is a floating-point tensor ``[B, ...]``."""
    x = check_floating(name, x)
    if x.ndim == 0:
        raise ValueError(f"{name} must be [B, ...], got a scalar")
    return x


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise a ValueError unless x has the shape and the device of other."""
    if x.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got shape {tuple(x.shape)}"
        )
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {x.device}")


def check_returned(function: str, value: object, shape: torch.Size, meaning: str, device: torch.device) -> Tensor:
    """Return the value of a caller's function; raise unless it is a floating-point tensor of this shape and device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{function} must return a tensor, got {type(value).__name__}")
    if not value.dtype.is_floating_point:
        raise TypeError(f"{function} must return a floating point dtype, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{function} must return {meaning}, {tuple(shape)}, got shape {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{function} must return a tensor on {device}, the device of its input, got {value.device}")
    return value


def check_value(function: str, value: object, x: Tensor) -> Tensor:
    """Return ``function(x)``; raise unless it is a floating-point tensor with the shape and the device of x."""
    return check_returned(function, value, x.shape, "the shape of x", x.device)


def check_time(t: Tensor | float, path: HasDomain, like: Tensor | None = None) -> Tensor:
    """Return t at least in float32, ``[B]`` where like is ``[B, ...]``; raise if it lies outside the path's domain."""
    if isinstance(t, (int, float)) and not isinstance(t, bool):
        t = torch.as_tensor(float(t), device=None if like is None else like.device)
    t = check_floating("t", t)
    if like is not None:
        if t.ndim > 1 or (t.ndim == 1 and t.shape[0] != like.shape[0]):
            raise ValueError(f"t must be a scalar or [B] with B = {like.shape[0]}, got shape {tuple(t.shape)}")
        if t.device != like.device:
            raise ValueError(f"t must be on the device of x1, {like.device}, got {t.device}")
    low, high = path.domain
    if readable(t):
        least, most = [x.item() for x in unwrapped(t).aminmax()]
        if not (_rounded(low, t.dtype) <= least and most <= _rounded(high, t.dtype)):  # false for NaN
            raise ValueError(f"t must lie in the domain [{low}, {high}] of {path}, got values in [{least}, {most}]")
    t = t.to(at_least_float32(t))
    return t if like is None or t.ndim == 1 else t.expand(like.shape[0])


@functools.cache
def _rounded(bound: float, dtype: torch.dtype) -> float:
    """Round the bound to t's dtype: a time drawn up to the bound may round beyond it."""
    return torch.tensor(bound, dtype=dtype).item()


def readable(x: Tensor) -> bool:
    """Return True if checks may read x's values: on a CPU always, on a GPU (it synchronises) with FASTFLOW_DEBUG=1."""
    if torch.compiler.is_compiling() or x.is_meta or x.numel() == 0:
        return False
    return x.device.type == "cpu" or debug_checks()


def debug_checks() -> bool:
    """Return True if ``FASTFLOW_DEBUG=1`` asks for checks that read values off the GPU."""
    return os.environ.get("FASTFLOW_DEBUG", "0") == "1"
