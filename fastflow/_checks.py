"""Argument checks. A message names the argument, what it must be and what was given."""

import functools
import os
from typing import Any, Protocol, get_args

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


def check_time(t: Tensor | float, path: HasDomain, like: Tensor | None = None) -> Tensor:
    """Return t inside the path's domain, at least in float32, ``[B]`` where like is ``[B, ...]``.

    Raises if t lies outside the domain by more than its dtype rounds the bounds. Values are read where that is cheap,
    see :func:`readable`; elsewhere, on a GPU and under torch.compile, times outside are moved to the nearer bound.
    """
    if isinstance(t, (int, float)) and not isinstance(t, bool):
        wide = torch.float32 if like is None else at_least_float32(like)
        t = torch.tensor(float(t), dtype=wide, device=None if like is None else like.device)
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
    if (low, high) != (0.0, 1.0):  # every dtype has 0 and 1, but rounds other bounds, perhaps beyond the domain
        t = t.clamp(low, high)
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
