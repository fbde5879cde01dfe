"""The operands of the gated norm's backward, named once for every implementation."""

from typing import NamedTuple

from torch import Tensor


class NormOperands(NamedTuple):
    """Cotangents of the outputs, of their tangents (h, with a leading K), operands, their tangents, statistics.

    An absent cotangent or tangent is None; t_sum is None if x, gate and y have no tangent.
    """

    g_sum: Tensor | None  # [G, M, D], as sum, normed and y
    g: Tensor | None
    h_sum: Tensor | None
    h: Tensor | None
    sum: Tensor
    gate: Tensor  # [G, 1 or M, D], as scale and shift
    y: Tensor
    scale: Tensor | None
    shift: Tensor | None
    t_sum: Tensor | None
    t_gate: Tensor | None
    ty: Tensor | None
    t_scale: Tensor | None
    t_shift: Tensor | None
    mean: Tensor  # [G, M], or [G, 0] if the norm does not centre
    rstd: Tensor  # [G, M]
    t_rstd: Tensor | None  # [K, G, M], which the kernels compute again
