"""The activations, their tangents and the gradients of both, from PyTorch's own kernels.

PyTorch's fused passes serve what needs one derivative of one tensor. The rest runs in blocks that fit the cache, with
in-place operations, so that φ, φ' and φ'' are shared and never held whole. Numbers in comments are the equations of
README.md. Shapes: x, b and g alike; h and the tangents tx, tb with a leading K. None is zero, and a b of 1.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._dtypes import at_least_float32
from .blocks import each_block
from .reference import CUBIC, SATURATED, SLOPE

Two = tuple[Tensor | None, Tensor | None]
Four = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]

_aten = torch.ops.aten
_gelu_backward = _aten.gelu_backward.grad_input  # (y, x) -> y φ'(x)
_sigmoid_backward = _aten.sigmoid_backward.grad_input  # (y, σ) -> y σ(1 − σ)

_NUM_BUFFERS = 6


class Fused(NamedTuple):
    """One pass for φ, and one for its slope times y."""

    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # (y, x)


# on a CPU, blocks with one sigmoid are faster than PyTorch's tanh
_FUSED = {"gelu": Fused(F.gelu, _aten.gelu_backward), "silu": Fused(F.silu, _aten.silu_backward)}


def forward(x: Tensor, b: Tensor | None, kind: str) -> Tensor:
    """Return ``φ(x) ∘ b``, contiguous, in the dtype of x."""
    if b is None and kind in _FUSED:
        return _FUSED[kind].forward(x).contiguous()
    out = _empty(x)

    def block(x: Tensor, b: Tensor | None, out: Tensor, scratch: Tensor) -> None:
        _curve(x, kind, scratch, phi=out)
        if b is not None:
            out.mul_(b)  # (1)

    each_block(block, (x, b), (out,), _NUM_BUFFERS)
    return out


def backward(g: Tensor, x: Tensor, b: Tensor | None, kind: str, wants: Sequence[bool]) -> Two:
    """Return dx and db for the cotangent g, or for K of them ``[K, ...]``; None for what is not wanted."""
    if g.ndim == x.ndim and b is None and kind in _FUSED:
        return _FUSED[kind].backward(g, x).contiguous(), None
    many = g if g.ndim > x.ndim else g.unsqueeze(0)
    *_, dx, db = _gradients(None, many, x, b, None, None, kind, (False, False), wants)  # (8)
    return (dx, db) if many is g else (_first(dx), _first(db))


def dual_forward(x: Tensor, b: Tensor | None, tx: Tensor | None, tb: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """Return out and its tangents, ``[K, ...]``."""
    if b is None and tx is not None and len(tx) == 1 and kind in _FUSED:
        t_out = _FUSED[kind].backward(tx.squeeze(0), x)
        return _FUSED[kind].forward(x).contiguous(), t_out.contiguous().unsqueeze(0)
    given = tb if tx is None else tx
    assert given is not None
    out, t_out = _empty(x), torch.empty(given.shape, dtype=x.dtype, device=x.device)

    def block(
        x: Tensor, b: Tensor | None, tx: Tensor | None, tb: Tensor | None,
        out: Tensor, t_out: Tensor, scratch: Tensor,
    ) -> None:  # fmt: skip
        _, slope, _ = _curve(x, kind, scratch, phi=out, order=int(tx is not None))
        if b is not None and tx is not None:
            slope.mul_(b)
        _sum_of_products((slope, tx), (out, tb), out=t_out)  # (2)
        if b is not None:
            out.mul_(b)  # (1)

    each_block(block, (x, b, tx, tb), (out, t_out), _NUM_BUFFERS)
    return out, t_out


def dual_backward(
    g: Tensor | None, h: Tensor, x: Tensor, b: Tensor | None, tx: Tensor | None, tb: Tensor | None, kind: str,
    wants: Sequence[bool], t_wants: Sequence[bool],
) -> Four:  # fmt: skip
    """Return dx, db, dtx, dtb of ``⟨g, out⟩ + Σ_K ⟨h, t_out⟩``; None for what is not wanted."""
    if kind == "gelu" and b is None and len(h) == 1 and x.dtype == at_least_float32(x):
        return _gelu_gradients(g, h, x, tx, wants[0], t_wants[0])
    return _gradients(g, h, x, b, tx, tb, kind, wants, t_wants)


def _gradients(
    g: Tensor | None, h: Tensor, x: Tensor, b: Tensor | None, tx: Tensor | None, tb: Tensor | None, kind: str,
    wants: Sequence[bool], t_wants: Sequence[bool],
) -> Four:  # fmt: skip
    """Compute :func:`dual_backward` in one walk over the blocks."""
    dx, db = (_empty(x) if wanted else None for wanted in wants)
    dtx, dtb = (torch.empty(h.shape, dtype=x.dtype, device=x.device) if wanted else None for wanted in t_wants)

    def block(
        g: Tensor | None, h: Tensor, x: Tensor, b: Tensor | None, tx: Tensor | None, tb: Tensor | None,
        dx: Tensor | None, db: Tensor | None, dtx: Tensor | None, dtb: Tensor | None, scratch: Tensor,
    ) -> None:  # fmt: skip
        order = 2 if dx is not None and tx is not None else 1
        phi, slope, curvature = _curve(x, kind, scratch, phi=None if b is None else scratch[0], order=order)
        A, B = None, g
        if tx is not None and (dx is not None or db is not None):
            A = _sum_of_products(*zip(h, tx), out=scratch[3])  # (5)
        if db is not None:
            _sum_of_products((phi, g), (slope, A), out=db)  # (6)
        if dtb is not None:
            torch.mul(phi, h, out=dtb)  # (7)
        if b is not None and dx is not None:
            B = _sum_of_products((b, g), *(() if tb is None else zip(h, tb)), out=scratch[4])  # (5)
            curvature.mul_(b)
        if dx is not None:
            _sum_of_products((slope, B), (curvature, A), out=dx)  # (6)
        if dtx is not None:
            torch.mul(slope if b is None else slope.mul_(b), h, out=dtx)  # (7)

    each_block(block, (g, h, x, b, tx, tb), (dx, db, dtx, dtb), _NUM_BUFFERS)
    return dx, db, dtx, dtb


def _gelu_gradients(g: Tensor | None, h: Tensor, x: Tensor, tx: Tensor | None, wants_x: bool, wants_tx: bool) -> Four:
    """Compute :func:`dual_backward` of the exact GELU for K = 1.

    The fused pass runs on whole tensors: it has a fixed cost per call, which blocks would pay again and again.
    """
    times_slope, one_h = _FUSED["gelu"].backward, h.squeeze(0)
    dtx = times_slope(one_h, x).contiguous().unsqueeze(0) if wants_tx else None  # (7)
    if not wants_x:
        return None, None, dtx, None
    dx = _empty(x) if g is None else times_slope(g, x).contiguous()

    def block(h: Tensor, x: Tensor, tx: Tensor, dx: Tensor, scratch: Tensor) -> None:
        curvature = _gelu_curvature(x, *scratch).mul_(tx)
        torch.mul(curvature, h, out=dx) if g is None else dx.addcmul_(curvature, h)  # (6)

    each_block(block, (one_h, x, None if tx is None else tx.squeeze(0)), (dx,), 2)
    return dx, None, dtx, None


class Curve(NamedTuple):
    """φ, φ' and φ'' on a block; what was not asked for is None or undefined."""

    phi: Tensor | None
    slope: Tensor
    curvature: Tensor


def _curve(x: Tensor, kind: str, scratch: Tensor, phi: Tensor | None, order: int = 0) -> Curve:
    """Write φ to phi, if given, and its derivatives up to this order to scratch; phi may be its first buffer."""
    sigma, slope, curvature, spare, *_ = scratch
    if kind == "gelu":
        if order >= 1:
            _gelu_backward(spare.fill_(1), x, grad_input=slope)
        if order == 2:
            _gelu_curvature(x, curvature, spare)
        if phi is not None:
            _aten.gelu.out(x, out=phi)
        return Curve(phi, slope, curvature)
    if kind == "gelu_tanh" and order == 2:
        _tanh_derivatives(x, *scratch)
    if kind == "silu":
        torch.sigmoid(x, out=sigma)
    elif order < 2 or phi is not None:
        torch.addcmul(_constant(SLOPE, x), x, x, value=SLOPE * CUBIC, out=sigma).mul_(x).sigmoid_()  # (4)
    if kind == "silu" and order == 2:
        torch.add(_constant(1.0, x), sigma, alpha=-2, out=curvature)  # (4)
        torch.addcmul(_constant(2.0, x), curvature, x, out=curvature)
        _sigmoid_backward(curvature, sigma, grad_input=curvature)
    if kind == "gelu_tanh" and order == 1:
        y = torch.clamp(x, -SATURATED, SATURATED, out=spare)
        torch.addcmul(_constant(SLOPE, x), y, y, value=3 * SLOPE * CUBIC, out=slope).mul_(y)
        _sigmoid_backward(slope, sigma, grad_input=slope).add_(sigma)
    if kind == "silu" and order >= 1:
        _sigmoid_backward(x, sigma, grad_input=slope).add_(sigma)
    if phi is not None:
        torch.mul(x, sigma, out=phi)
    return Curve(phi, slope, curvature)


def _tanh_derivatives(x: Tensor, s: Tensor, slope: Tensor, curvature: Tensor, dv: Tensor, y: Tensor, w: Tensor) -> None:
    """Write φ' and φ'' of the tanh form by (9), which is exact where 1 − σ would cancel."""
    torch.abs(x, out=y).clamp_(max=SATURATED)
    torch.addcmul(_constant(SLOPE, x), y, y, value=3 * SLOPE * CUBIC, out=dv)
    torch.mul(y, dv, out=w)
    torch.addcmul(_constant(-SLOPE, x), y, y, value=-SLOPE * CUBIC, out=s).mul_(y).sigmoid_()
    t = torch.add(_constant(1.0, x), s, alpha=-2, out=y)  # 1 − 2s
    _sigmoid_backward(w, s, grad_input=slope).add_(t, alpha=0.5).copysign_(x).add_(0.5)
    torch.addcmul(_constant(4.0, x), t, w, value=-1, out=curvature)
    torch.addcmul(_constant(-2 * SLOPE, x), curvature, dv, out=curvature)
    _sigmoid_backward(curvature, s, grad_input=curvature)


def _gelu_curvature(x: Tensor, curvature: Tensor, spare: Tensor) -> Tensor:
    """Write ``p (2 − x²)`` of (3) to curvature, with a power of two, which PyTorch computes faster than exp."""
    peak = _constant(-0.5 * math.log2(2 * math.pi), x)
    torch.addcmul(peak, x, x, value=-0.5 * math.log2(math.e), out=curvature).exp2_()
    return curvature.mul_(torch.addcmul(_constant(2.0, x), x, x, value=-1, out=spare))


def _constant(value: float, like: Tensor) -> Tensor:
    """Return a 0-d tensor, as the first operand of a fused multiply-add."""
    return torch.full((), value, dtype=like.dtype, device=like.device)


def _sum_of_products(*pairs: tuple[Tensor | None, Tensor | None], out: Tensor) -> Tensor:
    """Write the sum of the pairs' products to out; a pair with None is zero."""
    started = False
    for x, y in pairs:
        if x is not None and y is not None:
            out.addcmul_(x, y) if started else torch.mul(x, y, out=out)
            started = True
    return out if started else out.zero_()


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _first(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.squeeze(0)
