"""The linear layer, its tangents and the gradients of both, by PyTorch's GEMMs: as few as there can be.

Numbers in comments are the equations of README.md. Shapes as in ``reference.py``; g ``[G, M, out]`` and h
``[K, G, M, out]`` are the cotangents of out and t_out. A tangent or cotangent that is None is zero; a gradient that is
not wanted, or whose operand is None, is None.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .reference import times

Maybe = Tensor | None

# One GEMM of primal and tangent pays for its copies where reading the weight takes longer than the arithmetic.
_MIN_ROWS, _MAX_ROWS, _MIN_WEIGHT = 2, 64, 1 << 19


def forward(x: Tensor, weight: Tensor, bias: Maybe) -> tuple[Tensor]:
    """Return out, by (1)."""
    if weight.shape[0] != 1:
        return (torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias, x, weight.mT),)
    return (F.linear(x.squeeze(0), weight.squeeze(0), None if bias is None else bias.flatten()).unsqueeze(0),)


def backward(g: Tensor, x: Tensor, weight: Tensor, bias: Maybe, wants: Sequence[bool]) -> list[Maybe]:
    """Return the gradients of x, weight and bias, with the axis K of g if it has one."""
    wants_x, wants_weight, wants_bias = wants
    dx = times(g, weight) if wants_x else None  # (3)
    dw = None
    if wants_weight:
        dw = _product(g.mT, x) if g.ndim == x.ndim else g.mT @ x  # (4)
    return [dx, dw, _row_sum(g) if wants_bias and bias is not None else None]


def dual_forward(x: Tensor, weight: Tensor, bias: Maybe, tx: Maybe, tw: Maybe, tb: Maybe) -> tuple[Tensor, Tensor]:
    """Return out and t_out ``[K, G, M, out]``, by (1) and (2)."""
    t_out: Maybe = None
    if tx is not None and _is_short(x, tx, weight):
        out, t_out = _together(x, tx, weight.mT)
        if bias is not None:
            out += bias
    else:
        (out,) = forward(x, weight, bias)
        if tx is not None:
            t_out = times(tx, weight.mT)
    if tw is not None:
        terms = [_product(x, y.mT, None if t_out is None else t_out[k]) for k, y in enumerate(tw)]
        t_out = torch.stack(terms) if t_out is None else t_out
    if tb is not None:
        t_out = tb.expand(-1, *out.shape).contiguous() if t_out is None else t_out.add_(tb)
    assert t_out is not None
    return out, t_out


def dual_backward(
    g: Maybe, h: Tensor, x: Tensor, weight: Tensor, bias: Maybe, tx: Maybe, tw: Maybe, tb: Maybe,
    wants: Sequence[bool], t_wants: Sequence[bool],
) -> list[Maybe]:  # fmt: skip
    """Return the gradients of x, weight and bias, then of their tangents."""
    wants_x, wants_weight, wants_bias = wants
    wants_tx, wants_tw, wants_tb = (wanted and t is not None for wanted, t in zip(t_wants, (tx, tw, tb)))
    dx = dtx = dw = db = None
    if wants_x and wants_tx and g is not None and _is_short(g, h, weight):
        dx, dtx = _together(g, h, weight)  # (3), (5)
    else:
        dx = times(g, weight) if wants_x and g is not None else None
        dtx = times(h, weight) if wants_tx else None
    if wants_x:
        for h_k, tw_k in zip(h, () if tw is None else tw):
            dx = _product(h_k, tw_k, dx)
        dx = torch.zeros_like(x) if dx is None else dx
    if wants_weight:
        dw = None if g is None else _product(g.mT, x)  # (4)
        dw = dw if tx is None else _product(_rows(h).mT, _rows(tx), dw)
        dw = torch.zeros_like(weight) if dw is None else dw
    if wants_bias and bias is not None:
        db = torch.zeros_like(bias) if g is None else _row_sum(g)
    return [dx, dw, db, dtx, h.mT @ x if wants_tw else None, _row_sum(h) if wants_tb else None]  # (6)


def _product(a: Tensor, b: Tensor, plus: Maybe = None) -> Tensor:
    """Return ``a b`` for a ``[G, m, n]`` and b ``[G, n, p]``, added to plus, in place, if that is given."""
    if a.shape[0] != 1:
        return torch.bmm(a, b) if plus is None else torch.baddbmm(plus, a, b, out=plus)
    a, b = a.squeeze(0), b.squeeze(0)
    if plus is None:
        return torch.mm(a, b).unsqueeze(0)
    torch.addmm(plus.squeeze(0), a, b, out=plus.squeeze(0))
    return plus


def _together(x: Tensor, tx: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Return ``x w`` and ``tx w`` by one GEMM of (K + 1) M rows, each in memory of its own."""
    both = times(torch.cat((x.unsqueeze(0), tx)), w)
    return both[0].clone(), both[1:].clone()


def _is_short(x: Tensor, tx: Tensor, weight: Tensor) -> bool:
    num_rows = x.shape[1] * (1 + tx.shape[0])
    return weight.shape[0] == 1 and x.shape[1] >= _MIN_ROWS and num_rows <= _MAX_ROWS and weight.numel() >= _MIN_WEIGHT


def _rows(x: Tensor) -> Tensor:
    """Join K and M of ``[K, G, M, n]``: ``[G, K M, n]``."""
    return x.transpose(0, 1).flatten(1, 2)


def _row_sum(x: Tensor) -> Tensor:
    return x.sum(-2, keepdim=True)
