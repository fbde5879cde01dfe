"""The activations, each one function for every mode of ``torch.func`` and autograd."""

import functools
from typing import Any

import torch
from torch import Tensor

from ... import _backend
from ..._backend import is_free
from ..._checks import check_choice, check_floating, check_like
from ..._torch import inside_transform
from ...kernels.activation import reference
from .._ordinary import is_ordinary
from .op import OP, Constants, Options, Primals, native

_KINDS = {"none": "gelu", "tanh": "gelu_tanh"}


def gelu(x: Tensor, approximate: str = "none", *, backend: str = "auto") -> Tensor:
    """GELU, ``x Φ(x)`` with the normal distribution function Φ, with the signature and meaning of PyTorch's.

    Differentiable to second order in every mode: reverse, forward, each over the other, reverse over reverse, under
    ``vmap`` and ``torch.compile``. x and its tangents are kept for the backward, and nothing else.

    Args:
        x: any shape and strides; float16, bfloat16, float32 or float64.
        approximate: ``"none"``, or ``"tanh"`` for ``x (1 + tanh(√(2/π) (x + 0.044715 x³))) / 2``.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``. Outside of transforms and forward mode,
            PyTorch's own kernel is used.

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        TypeError: x is no dense floating-point tensor.
        ValueError: approximate or backend is unknown, or the backend cannot run on x.
        NotImplementedError: a third derivative, or forward mode inside forward mode.

    Source: Hendrycks and Gimpel (1606.08415); the derivatives are derived in ``kernels/activation/README.md``.
    """
    check_choice("approximate", approximate, tuple(_KINDS))
    return _activation(check_floating("x", x), None, _KINDS[approximate], backend)


def silu(x: Tensor, *, backend: str = "auto") -> Tensor:
    """SiLU, ``x / (1 + exp(−x))``, differentiable to second order in every mode.

    Args:
        x, backend: as for :func:`gelu`.

    Returns:
        A tensor of the shape and dtype of x.

    Raises:
        As :func:`gelu`.

    Source: Elfwing et al. (1702.03118), eq. 9; the derivatives are derived in ``kernels/activation/README.md``.
    """
    return _activation(check_floating("x", x), None, "silu", backend)


def swiglu(a: Tensor, b: Tensor, *, backend: str = "auto") -> Tensor:
    """``silu(a) ∘ b``, differentiable to second order in every mode.

    The halves of one tensor, ``swiglu(*y.chunk(2, dim=-1))``, are read in place.

    Args:
        a: any shape and strides; float16, bfloat16, float32 or float64.
        b: the shape of a.
        backend: as for :func:`gelu`.

    Returns:
        A tensor of the shape of a, in the dtype to which PyTorch promotes those of a and b.

    Raises:
        As :func:`gelu`, and ValueError: the shapes or devices of a and b differ.

    Source: Shazeer (2002.05202), eq. 5; the derivatives are derived in ``kernels/activation/README.md``.
    """
    check_like("b", check_floating("b", b), "a", check_floating("a", a))
    if a.dtype != b.dtype:
        dtype = torch.promote_types(a.dtype, b.dtype)
        a, b = a.to(dtype), b.to(dtype)
    return _activation(a, b, "silu", backend)


def _activation(x: Tensor, b: Tensor | None, kind: str, backend: str) -> Tensor:
    if is_free(backend) and x.is_cpu and is_ordinary() and not inside_transform():
        return native(x, b, kind)  # as the op would, a few microseconds sooner
    if x.ndim == 0:
        return _activation(x.unsqueeze(0), None if b is None else b.unsqueeze(0), kind, backend).squeeze(0)
    if OP.why_not_compiled() is not None:
        return reference.forward(x, b, kind)
    return OP(Primals(x, b), Constants(), functools.partial(_prepared, kind, backend)).out


def _prepared(kind: str, backend: str, primals: Any, tangents: Any) -> tuple[Any, Any, Options]:
    x = primals[0]
    if tangents is not None:
        tangents = tuple(None if t is None else t.to(x.dtype) for t in tangents)
    chosen = _backend.resolve(backend, "activation", x)
    return primals, tangents, Options(kind, "triton" if chosen == "triton" else "aten")
