"""The gated residual, alone and with the norm that follows it, for every mode of ``torch.func`` and autograd."""

from torch import Tensor

from ... import _backend
from ..._checks import check_floating, check_like
from ...kernels.gate import reference
from .op import OP, NoConstants, Options, Primals
from .shapes import grouped, modulation


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
    check_floating("x", x)
    check_floating("y", y)
    check_like("y", y, "x", x)
    gate_ = modulation("gate", gate, x)
    options = Options(_implementation(backend, x, gate, y))
    x_, y_ = grouped(x), grouped(y)
    if options.implementation == "triton" and OP.why_not_compiled() is not None:
        out = reference.forward(x_, gate_, y_)
    else:
        out = OP(Primals(x_, gate_, y_), NoConstants(), lambda primals, tangents: (primals, tangents, options)).out
    return out if x.ndim == 3 else out.view(x.shape)


def _implementation(backend: str, *tensors: Tensor) -> str:
    return "triton" if _backend.resolve(backend, "gate", *tensors) == "triton" else "aten"
