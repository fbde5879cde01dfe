"""Argument checks that ops and paths share. A message names the argument, what it got and what it wanted."""

import functools
from typing import Protocol

import torch
from torch import Tensor
from torch._C import _functorch

from . import _backend


class HasDomain(Protocol):
    """Anything that names the closed interval of times it is defined on."""

    @property
    def domain(self) -> tuple[float, float]: ...


def check_floating(name: str, x: object) -> Tensor:
    """Raise unless x is a real floating point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating point dtype, got {x.dtype}")
    return x


def check_like(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Raise unless x has the shape and the device of other."""
    if x.shape != other.shape:
        raise ValueError(
            f"{name} must have the shape of {other_name}, {tuple(other.shape)}, got shape {tuple(x.shape)}"
        )
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {x.device}")


def check_time(t: Tensor | float, path: HasDomain, like: Tensor | None = None) -> Tensor:
    """t as a tensor of at least fp32, ``[B]`` where like is ``[B, ...]``; raise if it is not a time of this path."""
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
        least, most = [x.item() for x in plain(t).aminmax()]
        if not (_rounded(low, t.dtype) <= least and most <= _rounded(high, t.dtype)):  # NaN is in no interval
            raise ValueError(f"t must lie in the domain [{low}, {high}] of {path}, got values in [{least}, {most}]")
    if t.dtype not in (torch.float32, torch.float64):
        t = t.float()
    return t if like is None or t.ndim == 1 else t.expand(like.shape[0])


@functools.cache
def _rounded(bound: float, dtype: torch.dtype) -> float:
    """The bound as t's dtype has it: a time drawn up to the bound may be rounded beyond it."""
    return torch.tensor(bound, dtype=dtype).item()


def readable(x: Tensor) -> bool:
    """Whether values may be looked at: on a CPU always, on a GPU (a synchronisation) only with FASTFLOW_DEBUG=1."""
    if torch.compiler.is_compiling() or x.is_meta or x.numel() == 0:
        return False
    return x.device.type == "cpu" or _backend.debug_checks()


def plain(x: Tensor) -> Tensor:
    """The values under any torch.func transform, and without a graph."""
    while _functorch.is_functorch_wrapped_tensor(x):
        x = _functorch.get_unwrapped(x)
    return x.detach()
