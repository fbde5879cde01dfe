"""Compute the gated residual and its tangents in one pass: (1) and (2) of README.md.

Shapes: a tile is [R, C], R rows of a group and C columns; a tile of a shared gate is [1, C].
"""

import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from ..norm._tile import load_rows, load_tangent, store_rows
from ._launch import num_tangents, walk
from ._tile import gate_place, locate
from .reference import result_dtype


@triton.jit(do_not_specialize=["num_groups", "num_rows", "num_tangents"])
def _gated_add_kernel(
    # primals, tangents
    gate_ptr, y_ptr, x_ptr,
    t_gate_ptr, ty_ptr, tx_ptr,
    # outputs
    out_ptr, t_out_ptr,
    # strides (group, row, column), of tangents with the tangent's first
    strides_gate, strides_y, strides_x, strides_t_gate, strides_ty, strides_tx,
    # sizes
    num_groups, num_rows, num_tangents,
    # what is compiled, then the tile
    D: tl.constexpr, SHARED: tl.constexpr, ALIGN: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    group, _, rows, cols, mask = locate(num_rows, D, BLOCK_M, BLOCK_D)
    gate_rows, gate_mask = gate_place(rows, mask, cols, D, SHARED)
    gate = load_rows(gate_ptr, strides_gate, group, gate_rows, cols, gate_mask, ALIGN)[0]  # [1 or R, C]
    y = load_rows(y_ptr, strides_y, group, rows, cols, mask, ALIGN)[0]  # [R, C]
    x = load_rows(x_ptr, strides_x, group, rows, cols, mask, ALIGN)[0]
    store_rows(out_ptr, x + gate * y, group * num_rows + rows, cols, mask, D)  # (1)
    for k in tl.range(0, num_tangents):
        t_out = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if tx_ptr is not None:
            t_out += load_tangent(tx_ptr, strides_tx, k, group, rows, cols, mask, ALIGN)[0]
        if ty_ptr is not None:
            t_out += gate * load_tangent(ty_ptr, strides_ty, k, group, rows, cols, mask, ALIGN)[0]  # (2)
        if t_gate_ptr is not None:
            t_out += load_tangent(t_gate_ptr, strides_t_gate, k, group, gate_rows, cols, gate_mask, ALIGN)[0] * y
        index = k * num_groups.to(tl.int64) + group
        store_rows(t_out_ptr, t_out, index * num_rows + rows, cols, mask, D)


def forward(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """Return ``x + gate∘y``; see :func:`dual_forward`."""
    return dual_forward(x, gate, y, None, None, None)[0]


def dual_forward(
    x: Tensor, gate: Tensor, y: Tensor, tx: Tensor | None, t_gate: Tensor | None, ty: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return out and t_out ``[K, ...]``, contiguous, in the dtype that PyTorch promotes x, gate and y to.

    x and y: ``[G, M, D]``, gate: ``[G, 1 or M, D]``, float16, bfloat16 or float32; tx, t_gate, ty: the same with a
    leading K, None for zero; K is 0 without tangents.
    """
    K = num_tangents(tx, t_gate, ty)
    out = x.new_empty(x.shape, dtype=result_dtype(x, gate, y))
    t_out = out.new_empty(K, *out.shape)
    if out.numel():
        where = walk(gate, y, x, t_gate, ty, tx)
        with on_device(x):
            _gated_add_kernel[where.grid](
                *where.tensors, out, t_out, *where.strides, *where.size[:2], K, **where.options
            )
    return out, t_out
