"""The gradients of the activations and of K tangents in one pass: (5) to (8) of README.md."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from ._tile import Problem, curve, empty, load, locate, store

Two = tuple[Tensor | None, Tensor | None]
Four = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


@triton.jit
def _backward_kernel(
    # cotangents, x, b, tx, tb
    g_ptr, h_ptr, x_ptr, b_ptr, tx_ptr, tb_ptr,
    # outputs
    dx_ptr, db_ptr, dtx_ptr, dtb_ptr,
    # strides per input, of tangents and of rows; sizes; numel: of x
    strides, num_tangents, num_rows, row_size, numel,
    # what is compiled, then the tile
    KIND: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row, col, mask = locate(num_rows, row_size, ROWS, COLS)
    offs = row * row_size + col  # [R, C]
    phi, slope, curvature = curve(load(x_ptr, row * strides[2][1] + col, mask), KIND)
    slope_b = slope
    if b_ptr is not None:
        b = load(b_ptr, row * strides[3][1] + col, mask)
        slope_b, curvature = slope * b, curvature * b
    a = tl.zeros_like(phi)  # A and B of (5)
    bb = tl.zeros_like(phi)
    if g_ptr is not None:
        g = load(g_ptr, row * strides[0][1] + col, mask)
        bb = g if b_ptr is None else b * g
    for _ in range(num_tangents):
        h = load(h_ptr, row * strides[1][1] + col, mask)
        h_ptr += strides[1][0]
        if tx_ptr is not None:
            a += h * load(tx_ptr, row * strides[4][1] + col, mask)
            tx_ptr += strides[4][0]
        if tb_ptr is not None:
            bb += h * load(tb_ptr, row * strides[5][1] + col, mask)
            tb_ptr += strides[5][0]
        if dtx_ptr is not None:
            store(dtx_ptr, offs, slope_b * h, mask)  # (7)
            dtx_ptr += numel
        if dtb_ptr is not None:
            store(dtb_ptr, offs, phi * h, mask)
            dtb_ptr += numel
    if dx_ptr is not None:
        store(dx_ptr, offs, slope * bb + curvature * a, mask)  # (6)
    if db_ptr is not None:
        db = slope * a
        if g_ptr is not None:
            db += phi * g
        store(db_ptr, offs, db, mask)


def backward(g: Tensor, x: Tensor, b: Tensor | None, kind: str, wants: Sequence[bool]) -> Two:
    """Return dx and db for the cotangent g, or for K of them ``[K, ...]``; None for what is not wanted."""
    many = g if g.ndim > x.ndim else g.unsqueeze(0)
    *_, dx, db = dual_backward(None, many, x, b, None, None, kind, (False, False), wants)  # (8)
    return (dx, db) if many is g else (_first(dx), _first(db))


def dual_backward(
    g: Tensor | None, h: Tensor, x: Tensor, b: Tensor | None, tx: Tensor | None, tb: Tensor | None, kind: str,
    wants: Sequence[bool], t_wants: Sequence[bool],
) -> Four:  # fmt: skip
    """Return dx, db, dtx, dtb of ``⟨g, out⟩ + Σ_K ⟨h, t_out⟩``; None for what is not wanted."""
    dx, db = (empty(x, x.dtype) if wanted else None for wanted in wants)
    dtx, dtb = (empty(h, x.dtype) if wanted else None for wanted in t_wants)
    outputs = dx, db, dtx, dtb
    Problem((g, h, x, b, tx, tb), x.ndim).launch(_backward_kernel, outputs, len(h), kind)
    return outputs


def _first(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.squeeze(0)
