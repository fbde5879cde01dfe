"""The gated residual, alone and with the norm that follows it, for every mode of ``torch.func`` and autograd."""

from typing import Literal

import torch
from torch import Tensor

from ... import _backend
from ..._backend import is_free
from ..._checks import check_choice, check_eps, check_floating, check_like, check_recording
from ..._dtypes import at_least_float32, autocast_dtype
from ...kernels.gate import reference
from ...kernels.norm.config import MAX_WIDTH
from .._calls import Forward
from .._ordinary import is_ordinary
from .._tangents import complete_tangents
from ..norm.plain import plain_modulated_norm
from .norm_op import FUNCTIONS, NORM_OP, NormOptions, NormPrimals
from .op import OP, Constants, Options, Primals
from .shapes import grouped, layer_wide, modulation


def gated_add(x: Tensor, gate: Tensor, y: Tensor, *, backend: str = "auto") -> Tensor:
    """Add a branch to the residual stream through a gate: ``x + gate∘y``.

    Differentiable to second order in every mode: reverse, forward, each over the other, reverse over reverse, under
    ``vmap`` and ``torch.compile``.

    Args:
        x: ``[..., D]``, float16, bfloat16, float32 or float64, any strides; D is the width.
        gate: ``[B, D]`` or ``[B, 1, D]`` (of a sample, x being ``[B, ..., D]``), the shape of x (of a token), or
            ``[D]`` (of the layer, as LayerScale has it).
        y: the shape of x.
        backend: ``"auto"``, ``"triton"`` or ``"reference"``.

    Returns:
        The shape of x, in the dtype that PyTorch promotes x, gate and y to.

    Raises:
        TypeError: an argument that is not a dense floating-point tensor.
        ValueError: shapes or devices do not match, or the backend cannot run on these tensors.
        NotImplementedError: a third derivative; forward mode inside forward mode.

    Source: adaLN-zero, Peebles and Xie (2212.09748), section 3.2; LayerScale, Touvron et al. (2103.17239), eq. 2. The
    derivatives are derived in ``kernels/gate/README.md``.
    """
    check_recording()
    _check_stream(x, y)
    gate_ = modulation("gate", gate, x)
    x_, y_ = grouped(x), grouped(y)
    if _is_plain(backend, x):
        return torch.addcmul(x_, gate_, y_).view(x.shape)
    options = Options(_implementation(backend, "gated_add", x, gate, y))
    if OP.why_not_compiled() is not None:
        out = reference.forward(*complete_tangents(x_, gate_, y_))
    else:
        out = OP(Primals(x_, gate_, y_), Constants(), lambda primals, tangents: (primals, tangents, options)).out
    return out if x.ndim == 3 else out.view(x.shape)


def gated_add_layer_norm(
    x: Tensor,
    gate: Tensor,
    y: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    eps: float = 1e-6,
    norm: Literal["layer", "rms"] = "layer",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Add a branch through a gate and normalize the sum: ``x' = x + gate∘y`` and ``LN(x')(1 + scale) + shift``.

    One pass computes both, and one pass their backward. Differentiable as :func:`gated_add` is.

    Args:
        x, gate, y, backend: as for :func:`gated_add`.
        weight: ``[D]``, multiplies the norm before the modulation, or None for 1.
        bias: ``[D]``, added to the norm before the modulation, or None for 0.
        shift: of the shapes that gate may have, or None for 0.
        scale: likewise.
        eps: added to the variance.
        norm: ``"layer"``, or ``"rms"``, which divides by the root mean square and subtracts no mean.

    Returns:
        x' in the dtype that PyTorch promotes x, gate and y to, and its norm; both of the shape of x.

    Raises:
        As :func:`gated_add`; ValueError: norm is neither, eps is negative, or the rows are too wide for ``"triton"``.

    Source: as :func:`gated_add`, Ba et al. (1607.06450), Zhang and Sennrich (1910.07467).
    """
    check_recording()
    _check_stream(x, y)
    check_choice("norm", norm, ("layer", "rms"))
    eps = check_eps(eps)
    gate_ = modulation("gate", gate, x)
    is_bare = weight is None and bias is None and norm == "layer"
    if is_bare and scale is not None and shift is not None and _is_plain(backend, x):
        total = torch.addcmul(grouped(x), gate_, grouped(y))
        a, b = modulation("scale", scale, x), modulation("shift", shift, x)
        if total.dtype == x.dtype and (normed := plain_modulated_norm(total, a, b, eps)) is not None:
            return total.view(x.shape), normed.view(x.shape)
    scale_, shift_, unit = _affine(weight, bias, scale, shift, x)
    implementation = _implementation(backend, "gated_add_layer_norm", x, gate, y)
    options = NormOptions(eps, norm == "layer", unit, _norm_dtype(x, gate, y, scale, shift), implementation)
    primals = NormPrimals(grouped(x), gate_, grouped(y), scale_, shift_)
    if NORM_OP.why_not_compiled() is not None or (not torch.compiler.is_compiling() and x.numel() == 0):
        primals = NormPrimals(*complete_tangents(*primals))
        total, normed = FUNCTIONS.reference(Forward(primals, Constants(), options))
    else:
        total, normed = NORM_OP(primals, Constants(), lambda primals, tangents: (primals, tangents, options))
    return (total, normed) if x.ndim == 3 else (total.view(x.shape), normed.view(x.shape))


def _is_plain(backend: str, x: Tensor) -> bool:
    """Return True in ordinary training on a CPU, where PyTorch's own ops have every derivative and cost less."""
    return is_ordinary() and x.is_cpu and is_free(backend)


def _check_stream(x: Tensor, y: Tensor) -> None:
    if check_floating("x", x).ndim == 0:
        raise ValueError("x must be [..., D], got a scalar")
    check_like("y", check_floating("y", y), "x", x)


def _affine(
    weight: Tensor | None, bias: Tensor | None, scale: Tensor | None, shift: Tensor | None, x: Tensor
) -> tuple[Tensor | None, Tensor | None, bool]:
    """Return what multiplies the norm, what is added to it, both ``[G, 1 or M, D]``, and whether 1 + the first does."""
    a = None if scale is None else modulation("scale", scale, x)
    b = None if shift is None else modulation("shift", shift, x)
    w, c = (None if z is None else layer_wide(name, z, x) for name, z in (("weight", weight), ("bias", bias)))
    if w is None and c is None:
        return a, b, True
    if a is None and b is None:
        return w, c, False
    w, c, a, b = (None if z is None else z.to(at_least_float32(z)) for z in complete_tangents(w, c, a, b))
    if c is not None:
        c = c if a is None else c * (1 + a)
        b = c if b is None else c + b
    if w is None:
        return a, b, True
    return (w if a is None else w * (1 + a)), b, False


def _norm_dtype(x: Tensor, gate: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None) -> str:
    """Return the dtype that PyTorch's layer norm and the modulation give, the former in float32 under autocast."""
    dtype = reference.result_dtype(*(z for z in (x, gate, y, scale, shift) if z is not None))
    if x.device.type != "cpu" and autocast_dtype(x.device.type) is not None:
        dtype = torch.promote_types(dtype, torch.float32)
    return str(dtype).removeprefix("torch.")


def _implementation(backend: str, name: str, x: Tensor, *others: Tensor) -> str:
    if _backend.resolve(backend, name, x, *others) != "triton":
        return "aten"
    if name == "gated_add" or x.shape[-1] <= MAX_WIDTH:
        return "triton"
    if _backend.requested(backend) == "triton":
        raise ValueError(
            f"backend='triton' cannot serve {name}: the kernels take rows up to {MAX_WIDTH} wide, not {x.shape[-1]}"
        )
    return "aten"
