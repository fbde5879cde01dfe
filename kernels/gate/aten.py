"""The gated residual, its tangents and the backward of both, from PyTorch's own kernels.

Shapes: x, y, out and their cotangents ``[G, M, D]``; gate, scale and shift ``[G, 1 or M, D]``; tangents, and cotangents
of tangents, with a leading K, None for zero. Numbers in comments are the equations of README.md. Tensors are walked in
blocks that fit the cache, computed at least in float32 and written once.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._dtypes import at_least_float32
from ..norm import aten as norm
from .blocks import Block, blocks_of
from .norm_operands import NormOperands
from .reference import result_dtype

Pair = tuple[Tensor | None, Tensor | None]


def forward(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """Return ``x + gate∘y``."""
    out = x.new_empty(x.shape, dtype=result_dtype(x, gate, y))
    return torch.addcmul(x, gate, y, out=out)  # (1)


def dual_forward(
    x: Tensor, gate: Tensor, y: Tensor, tx: Tensor | None, t_gate: Tensor | None, ty: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return out and t_out ``[K, ...]``."""
    K = next(t.shape[0] for t in (tx, t_gate, ty) if t is not None)
    wide = at_least_float32(x, gate, y)
    out = x.new_empty(x.shape, dtype=result_dtype(x, gate, y))
    t_out = out.new_empty(K, *out.shape)
    for block in blocks_of(x):
        gate_b, yb = block.read(gate, wide), block.read(y, wide)
        block.store(sum_of_products(block.target(out, wide), (gate_b, yb), start=block.read(x, wide)), out)  # (1)
        for t_out_k, *tangents in zip(t_out, *(each(t, K) for t in (tx, t_gate, ty))):
            tx_b, t_gate_b, ty_b = (block.read(t, wide) for t in tangents)
            to = block.target(t_out_k, wide)
            block.store(sum_of_products(to, (gate_b, ty_b), (t_gate_b, yb), start=tx_b), t_out_k)  # (2)
    return out, t_out


def dual_backward(
    g: Tensor | None,
    h: Tensor | None,
    gate: Tensor,
    y: Tensor,
    t_gate: Tensor | None,
    ty: Tensor | None,
    wants: Sequence[bool],
    t_wants: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Return d_gate, dy, and d_t_gate, d_ty with a leading K, for the cotangents g of out and h of t_out.

    Those of x and its tangents are g and h. wants: of d_gate and dy, which are None if not wanted; t_wants alike.
    """
    K = 0 if h is None else h.shape[0]
    wide = at_least_float32(gate, y, *(z for z in (g, h) if z is not None))
    grads = GateGradients(gate, y, each(t_gate, K), each(ty, K), wants, t_wants, wide)
    for block in blocks_of(y):
        grads.add(block, block.read(g, wide), [block.read(h_k, wide) for h_k in each(h, K)])
    return grads.total()


def norm_forward(
    x: Tensor, gate: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None, **options: Any
) -> tuple[Tensor, ...]:
    """Return sum, normed, mean and rstd; options: those of the norm's forward."""
    total = forward(x, gate, y)
    return total, *norm.forward(total, scale, shift, **options)


def norm_dual_forward(
    x: Tensor, gate: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_gate: Tensor | None, ty: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None,
    **options: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return sum, normed, t_sum and t_normed ``[K, ...]``, mean, rstd and their tangents."""
    if tx is None and t_gate is None and ty is None:
        total, t_total = forward(x, gate, y), None
    else:
        total, t_total = dual_forward(x, gate, y, tx, t_gate, ty)
    normed, t_normed, *statistics = norm.dual_forward(total, scale, shift, t_total, t_scale, t_shift, **options)
    if t_total is None:
        t_total = total.new_zeros(t_normed.shape)
    return total, normed, t_total, t_normed, *statistics


def norm_dual_backward(
    operands: NormOperands, *, wants: Sequence[bool], t_wants: Sequence[bool], **options: bool
) -> tuple[Tensor | None, ...]:
    """Return the gradients of x, gate, y, scale and shift, then of their tangents, None for those not wanted.

    Those of x and its tangent are at least in float32, or cotangents themselves. options: those of the norm's backward.
    """
    g_sum, g, h_sum, h, total, gate, y, scale, shift, t_total, t_gate, ty, t_scale, t_shift, *rest = operands
    *statistics, t_rstd = rest
    (want_x, *of_gate, want_scale, want_shift), (want_tx, *t_of_gate, want_t_scale, want_t_shift) = wants, t_wants
    of_sum = want_x or any(of_gate)
    of_t_sum = want_tx or any(t_of_gate) or (of_gate[0] and ty is not None) or (of_gate[1] and t_gate is not None)
    of_norm, t_of_norm = (of_sum, want_scale, want_shift), (of_t_sum, want_t_scale, want_t_shift)
    wide = at_least_float32(total)
    total, t_total = total.to(wide), None if t_total is None else t_total.to(wide)
    grads: Sequence[Tensor | None] = (None, None, None)
    t_grads = grads
    if h is not None and any(of_norm):
        tensors = (g, h, total, scale, shift, t_total, t_scale, t_shift, *statistics, t_rstd)
        grads, t_grads = norm.dual_backward(*tensors, wants=of_norm, t_wants=t_of_norm, **options)
    elif h is not None:
        t_grads = norm.backward(h, total, scale, shift, *statistics, wants=t_of_norm, **options)
    elif g is not None and any(of_norm):
        many = norm.backward(g.unsqueeze(0), total, scale, shift, *statistics, wants=of_norm, **options)
        grads = [None if dx is None else dx.squeeze(0) for dx in many]
    of_x, of_tx = _plus(grads[0], g_sum), _plus(t_grads[0], h_sum)  # (8)
    d_gate, dy, d_t_gate, d_ty = dual_backward(of_x, of_tx, gate, y, t_gate, ty, of_gate, t_of_gate)
    found = of_x, d_gate, dy, *grads[1:], of_tx, d_t_gate, d_ty, *t_grads[1:]
    K = next((z.shape[0] for z in (h_sum, h) if z is not None), 0)
    likes, leads = (total, gate, y, scale, shift) * 2, [()] * 5 + [(K,)] * 5
    return tuple(
        None if not want else like.new_zeros((*lead, *like.shape)) if dx is None else dx
        for dx, like, lead, want in zip(found, likes, leads, (*wants, *t_wants))
    )


def _plus(fresh: Tensor | None, cotangent: Tensor | None) -> Tensor | None:
    """Return the sum; None is zero. fresh is overwritten."""
    if fresh is None or cotangent is None:
        return cotangent if fresh is None else fresh
    return fresh.add_(cotangent)


class GateGradients:
    """d_gate, dy, d_t_gate and d_ty, from the cotangents g of out and h_k of t_out, block by block."""

    def __init__(
        self,
        gate: Tensor,
        y: Tensor,
        t_gates: Sequence[Tensor | None],
        tys: Sequence[Tensor | None],
        wants: Sequence[bool],
        t_wants: Sequence[bool],
        wide: torch.dtype,
    ) -> None:
        K, self.wide, self.is_shared = len(tys), wide, gate.shape[1] != y.shape[1]
        self.gate, self.y, self.t_gates, self.tys = gate, y, t_gates, tys
        of_gate = self.wide if self.is_shared else gate.dtype  # a sum over blocks
        self.d_gate = gate.new_empty(gate.shape, dtype=of_gate) if wants[0] else None
        self.dy = y.new_empty(y.shape) if wants[1] else None
        self.d_t_gate = gate.new_empty(K, *gate.shape, dtype=of_gate) if t_wants[0] else None
        self.d_ty = y.new_empty(K, *y.shape) if t_wants[1] else None
        self.scratch = y.new_empty(0, dtype=self.wide)

    def add(self, block: Block, g: Tensor | None, hs: Sequence[Tensor]) -> None:
        """Add a block, whose g and hs are given, float32 at least."""
        gate, y = block.read(self.gate, self.wide), block.read(self.y, self.wide)
        if self.dy is not None:
            t_gates = (block.read(t, self.wide) for t in self.t_gates)
            self._write(self.dy, block, (gate, g), *zip(t_gates, hs))  # (3)
        if self.d_gate is not None:
            tys = (block.read(t, self.wide) for t in self.tys)
            self._sum(self.d_gate, block, (y, g), *zip(tys, hs))  # (4)
        for h, d_ty, d_t_gate in zip(hs, each(self.d_ty, len(hs)), each(self.d_t_gate, len(hs))):
            if d_ty is not None:
                self._write(d_ty, block, (gate, h))  # (5)
            if d_t_gate is not None:
                self._sum(d_t_gate, block, (y, h))  # (6)

    def total(self) -> tuple[Tensor | None, ...]:
        """Return the gradients, once every block is added."""
        sums = (self.d_gate, self.d_t_gate)
        if self.y.numel() == 0:  # there was no block
            sums = tuple(z if z is None else z.zero_() for z in sums)
        d_gate, d_t_gate = (z if z is None else z.to(self.gate.dtype) for z in sums)
        return d_gate, self.dy, d_t_gate, self.d_ty

    def _write(self, out: Tensor, block: Block, *pairs: Pair) -> None:
        block.store(sum_of_products(block.target(out, self.wide), *pairs), out)

    def _sum(self, out: Tensor, block: Block, *pairs: Pair) -> None:
        """Add the sum over rows to out if the gate is shared by them."""
        if not self.is_shared:
            return self._write(out, block, *pairs)
        shape = block.of(self.y).shape
        if self.scratch.numel() < shape.numel():
            self.scratch = self.scratch.new_empty(shape.numel())
        products = sum_of_products(self.scratch[: shape.numel()].view(shape), *pairs)
        rows, part = products.sum(1, keepdim=True), block.of(out)
        part.copy_(rows) if block.is_first else part.add_(rows)


def sum_of_products(out: Tensor, *pairs: Pair, start: Tensor | None = None) -> Tensor:
    """Write ``start + Σ a∘b`` to out and return it; None is zero."""
    total = start
    for a, b in pairs:
        if a is not None and b is not None:
            total = torch.mul(a, b, out=out) if total is None else torch.addcmul(total, a, b, out=out)
    if total is None:
        return out.zero_()
    return out.copy_(total) if total is start else out


def each(x: Tensor | None, num: int) -> Sequence[Tensor | None]:
    return [None] * num if x is None else x.unbind()
