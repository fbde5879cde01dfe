"""Argument checks. A message names the argument, what it must be and what was given."""

import functools
import math
import operator
import os
from numbers import Real
from typing import Any, Protocol, SupportsIndex, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from ._dtypes import at_least_float32
from ._torch import (
    below_transforms,
    forward_mode_active,
    is_transparent,
    requires_grad_at_any_level,
    transforms,
    unwrapped,
)


class HasDomain(Protocol):
    """Anything with a closed interval of times on which it is defined."""

    @property
    def domain(self) -> tuple[float, float]: ...


def check_choice(name: str, value: object, choices: Any) -> None:
    """Raise a ValueError unless value is one of the choices, given as a tuple or as a ``Literal``."""
    known = choices if isinstance(choices, tuple) else get_args(choices)
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_count(name: str, value: SupportsIndex) -> int:
    """Return value as an int; raise a TypeError unless it is one, a ValueError if it is below 1."""
    if isinstance(value, bool) or not isinstance(value, SupportsIndex):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if operator.index(value) < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return operator.index(value)


def check_integer(name: str, value: object) -> None:
    """Raise a TypeError unless value is an int, perhaps a symbolic one."""
    if not isinstance(value, (int, torch.SymInt)) or isinstance(value, bool):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")


def check_floating(name: str, x: object) -> Tensor:
    """Return x; raise a TypeError unless it is a dense, real floating-point tensor."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    check_dense(name, x)
    if not x.dtype.is_floating_point:
        raise TypeError(f"{name} must have a floating point dtype, got {x.dtype}")
    return x


def check_dense(name: str, x: Tensor) -> None:
    """Raise a TypeError unless the memory of x holds its values, one by one."""
    if (found := why_not_dense(x)) is not None:
        raise TypeError(f"{name} must be a dense tensor, got {found}")


def why_not_dense(x: Tensor) -> str | None:
    """Return what x is and what to pass instead, or None if x is a dense tensor.

    Parameters are dense, and so are fake tensors and others that PyTorch itself traces with. A subclass with a
    ``__torch_function__`` or ``__torch_dispatch__`` of its own is not: its memory may hold anything.
    """
    inner = below_transforms(x)
    if inner is not x and (found := why_not_dense(inner)) is not None:
        return found
    kind = type(x)
    if kind is not Tensor and kind is not Parameter and not is_transparent(kind):
        return _SUBCLASSES.get(kind.__name__, f"a tensor of class {kind.__name__}: pass a plain one with its values")
    if x.is_nested:
        return _SUBCLASSES["NestedTensor"]
    if x.layout is not torch.strided:
        return f"one of layout {x.layout}: pass x.to_dense()"
    return None


_SUBCLASSES = {
    "NestedTensor": "a nested tensor: pad it with torch.nested.to_padded_tensor and mask the padding",
    "DTensor": "a DTensor: pass x.to_local(), for instance inside torch.distributed.tensor.experimental.local_map",
    "MaskedTensor": "a MaskedTensor: pass x.get_data() and mask the result",
    "CausalBias": "a CausalBias, which has no values: only attention takes it, as attn_mask",
}


def check_number(name: str, x: Any) -> float:
    """Return x as a float, or symbolic under tracing; raise unless it is a finite real number.

    NumPy's scalars and 0-d tensors are numbers, as for PyTorch's own ops; reading one on a GPU synchronises.
    """
    if isinstance(x, Tensor):
        if x.ndim or x.dtype.is_complex or x.dtype == torch.bool:
            raise TypeError(f"{name} must be a number, got a tensor of shape {tuple(x.shape)} and dtype {x.dtype}")
        if is_differentiated(x):
            raise TypeError(f"{name} must be a number, got a tensor that is differentiated; pass {name}.detach()")
        x = x.item()
    elif isinstance(x, bool) or not isinstance(x, (float, int, torch.SymFloat, torch.SymInt, Real)):
        raise TypeError(f"{name} must be a number, got {type(x).__name__}")
    if x - x != 0:  # infinite or NaN; of a symbolic number this is false and no guard
        raise ValueError(f"{name} must be finite, got {x}")
    return torch.sym_float(x) if isinstance(x, (torch.SymFloat, torch.SymInt)) else float(x)


def is_differentiated(x: Tensor) -> bool:
    """Return True if a gradient of x, at any level of torch.func, or its tangent, at the innermost, is computed."""
    # a batched tensor cannot be unpacked; a tangent below it reaches the derivative rules, which raise
    if transforms()[-1:] in ((), ("Jvp",)) and forward_ad.unpack_dual(x).tangent is not None:
        return True
    if torch.compiler.is_compiling():
        return x.requires_grad
    return requires_grad_at_any_level(x) and torch.is_grad_enabled()


def check_eps(eps: object) -> float:
    """Return what a norm adds to a mean square, a finite number of at least 0."""
    if type(eps) is float and 0 <= eps < math.inf:
        return eps
    if (number := check_number("eps", eps)) < 0:
        raise ValueError(f"eps must be at least 0, got {eps}")
    return number


def check_recording() -> None:
    """Raise a RuntimeError where a derivative is taken under inference mode, which loses it without an error."""
    if torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return
    if forward_mode_active() or set(transforms()) - {"Vmap"}:
        raise RuntimeError("there are no derivatives under torch.inference_mode(): use torch.no_grad()")


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
    if (found := why_not_dense(value)) is not None:
        raise TypeError(f"{function} must return a dense tensor, got {found}")
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
