"""Layer norm and RMS norm over the last axis, with weights or modulation: one function each, for every mode."""

import functools

import torch
from torch import Tensor

from ..._backend import is_free
from ..._checks import check_eps, check_floating, check_recording
from ..._dtypes import at_least_float32, autocast_dtype
from ...kernels.norm import reference
from .._tangents import complete_tangents
from .op import OP, NoConstants, Options, Primals, canonical
from .plain import plain_modulated_norm, plain_norm
from .select import select

_NO_CONSTANTS = NoConstants()


def layer_norm(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """Layer norm over the last axis, ``(n ∘ weight + bias) ∘ (1 + scale) + shift``, n = (x − mean) / sqrt(var + eps).

    Differentiable to second order in every mode: reverse, forward, each over the other, reverse over reverse, under
    ``vmap`` and ``torch.compile``; the gradient through the tangent of ``F.layer_norm`` is wrong (pytorch#196700).
    Absent operands, and operands without a tangent, cost nothing.

    Args:
        x: ``[..., D]``, float16, bfloat16, float32 or float64, any strides.
        weight, bias: ``[D]``.
        shift, scale: ``[B, D]`` or ``[B, 1, ..., D]`` for x ``[B, ..., D]``, the shape of x, or ``[D]``.
        eps: keeps constant rows finite.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        A tensor of the shape of x, computed at least in float32 and rounded once. Its dtype is that of x (float32 under
        autocast on a GPU), promoted with those of shift and scale.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes or devices do not match, or the backend cannot run on these tensors.
        NotImplementedError: a third derivative; forward mode inside forward mode.

    Source: Ba et al., 1607.06450; modulation: Peebles and Xie, 2212.09748. The derivatives are derived in
    ``kernels/norm/README.md``.
    """
    return _norm(x, weight, bias, scale, shift, eps, backend, centred=True)


def rms_norm(
    x: Tensor,
    weight: Tensor | None = None,
    *,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    backend: str = "auto",
) -> Tensor:
    """RMS norm over the last axis, ``(n ∘ weight) ∘ (1 + scale) + shift`` with n = x / sqrt(mean x² + eps).

    Differentiable as :func:`layer_norm`, with the same arguments and errors.

    Args:
        x: ``[..., D]``: tokens, or the heads of queries and keys.
        weight: ``[D]``.
        shift, scale: as for :func:`layer_norm`.
        eps: keeps zero rows finite.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        A tensor of the shape of x, with the dtype that :func:`layer_norm` gives.

    Raises:
        TypeError, ValueError, NotImplementedError: as :func:`layer_norm`.

    Source: Zhang and Sennrich, 1910.07467; the derivatives are derived in ``kernels/norm/README.md``.
    """
    return _norm(x, weight, None, scale, shift, eps, backend, centred=False)


def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, eps: float,
    backend: str, centred: bool,
) -> Tensor:  # fmt: skip
    check_recording()
    _check(x, weight, bias, scale, shift)
    eps = check_eps(eps)
    if centred and weight is None and bias is None and scale is not None and shift is not None and is_free(backend):
        plain = plain_modulated_norm(x, scale, shift, eps)
        if plain is not None:
            return plain
    dtype = _result_dtype(x, scale, shift)
    if scale is None and shift is None:
        scale, shift, unit = weight, bias, False
    elif weight is None and bias is None:
        unit = True
    else:
        scale, shift, unit = _folded(weight, bias, scale, shift, x)
    primals = Primals(x, scale, shift)
    groups = x.shape[0] if any(_is_per_group(y, x) for y in (scale, shift)) else 1
    implementation = select(backend, x, scale, shift)
    if OP.why_not_compiled() is not None or (not torch.compiler.is_compiling() and x.numel() == 0):
        primals = canonical(groups, Primals(*complete_tangents(*primals)), x)
        out = reference.forward(*primals, eps=eps, centred=centred, unit=unit, dtype=dtype)
        return out.reshape(x.shape)
    options = Options(eps, centred, unit, str(dtype).removeprefix("torch."), implementation)
    plain = plain_norm(primals, groups, options)
    if plain is not None:
        return plain
    return OP(primals, _NO_CONSTANTS, functools.partial(_prepared, groups, options)).out.reshape(x.shape)


def _prepared(
    groups: int, options: Options, primals: Primals, tangents: Primals | None
) -> tuple[Primals, Primals | None, Options]:
    tangents = None if tangents is None else canonical(groups, tangents, primals.x)
    return canonical(groups, primals, primals.x), tangents, options


def _is_per_group(y: Tensor | None, x: Tensor) -> bool:
    return y is not None and y.ndim > 1 and y.shape != x.shape


def _folded(
    weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, x: Tensor
) -> tuple[Tensor | None, Tensor | None, bool]:
    """Return one scale and one shift in place of two each, and unit: the factor is 1 + scale."""
    weight, bias, scale, shift = (
        None if y is None else _broadcastable(y, x).to(at_least_float32(y))
        for y in complete_tangents(weight, bias, scale, shift)
    )
    if bias is not None and scale is not None:
        bias = bias * (1 + scale)
    if bias is not None:
        shift = bias if shift is None else bias + shift
    if weight is None:
        return scale, shift, True
    return weight if scale is None else weight * (1 + scale), shift, False


def _broadcastable(y: Tensor, x: Tensor) -> Tensor:
    return y if y.ndim in (1, x.ndim) else y.reshape(y.shape[0], *(1,) * (x.ndim - 2), y.shape[-1])


def _result_dtype(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> torch.dtype:
    dtype, device = x.dtype, x.device.type
    if device != "cpu" and dtype != torch.float64 and autocast_dtype(device) is not None:
        dtype = torch.float32  # autocast runs norms in float32, but not on a CPU
    for y in (scale, shift):
        dtype = dtype if y is None or y.dtype == dtype else torch.promote_types(dtype, y.dtype)
    return dtype


def _check(x: Tensor, weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None) -> None:
    check_floating("x", x)
    if x.ndim == 0:
        raise ValueError("x must be [..., D], got a scalar")
    shape, row = tuple(x.shape), tuple(x.shape[-1:])
    for name, y in (("weight", weight), ("bias", bias), ("scale", scale), ("shift", shift)):
        if y is None:
            continue
        check_floating(name, y)
        if (own := tuple(y.shape)) != row and (name in ("weight", "bias") or not _modulates(own, shape)):
            groups = [] if name in ("weight", "bias") or x.ndim == 1 else [*_group_shapes(shape), shape]
            *others, last = (str(list(allowed)) for allowed in dict.fromkeys([row, *groups]))
            wanted = f"{', '.join(others)} or {last}" if others else last
            raise ValueError(f"{name} must be {wanted}, got shape {own}")
        if y.device != x.device:
            raise ValueError(f"{name} must be on the device of x, {x.device}, got {y.device}")


def _modulates(own: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    return own == shape or (len(shape) > 1 and own in _group_shapes(shape))


def _group_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the shapes of a scale or shift per entry of x's first axis."""
    first, last = shape[0], shape[-1]
    return [(first, last), (first, *(1,) * (len(shape) - 2), last)]
