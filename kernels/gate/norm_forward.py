"""Add the gated residual, normalize and modulate the sum and, with K tangents, the tangents of both, in one pass.

Shapes: a tile is [R, C], R rows and C columns, a power of two of at least D; a tile that the rows of a group share is
[1, C]. Equation numbers are those of README.md; N marks those of ``../norm/README.md``.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from ..attention._launch import alignment, strides, unit_rows
from ..norm._tile import (
    jacobian_times,
    load_rows,
    load_tangent,
    modulated_tangent,
    row_mean,
    scaled,
    standardize,
    store_rows,
)
from ._launch import num_tangents, shared_by_rows
from ._tile import factor_of, row_or, shared_row, shared_tangent, tangent_or
from .config import NORM_ROWS, norm_tile
from .reference import result_dtype

_UNSPECIALIZED = ["group_size", "chunk_size", "num_groups", "num_chunks", "num_tangents"]


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _gated_norm_kernel(
    # inputs, [G, 1 or M, D], and tangents, [K, G, 1 or M, D]; scale, shift and tangents may be None
    x_ptr, gate_ptr, y_ptr, scale_ptr, shift_ptr,
    tx_ptr, t_gate_ptr, ty_ptr, t_scale_ptr, t_shift_ptr,
    # outputs, contiguous: [G, M, D] twice, [K, G, M, D] twice; statistics [G, M] and their tangents [K, G, M]
    sum_ptr, normed_ptr, t_sum_ptr, t_normed_ptr, mean_ptr, rstd_ptr, t_mean_ptr, t_rstd_ptr,
    eps,
    # strides
    strides_x, strides_gate, strides_y, strides_scale, strides_shift,
    strides_tx, strides_t_gate, strides_ty, strides_t_scale, strides_t_shift,
    # sizes: M, rows of a program, G, programs of a group, K
    group_size, chunk_size, num_groups, num_chunks, num_tangents,
    # what is compiled: SHARED: rows of a group share gate, scale, shift; SINGLE: K is 1
    D: tl.constexpr, CENTRED: tl.constexpr, UNIT: tl.constexpr, SHARED: tl.constexpr, SINGLE: tl.constexpr,
    ALIGN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    chunk, group = pid % num_chunks, pid // num_chunks
    first, end = chunk * chunk_size, tl.minimum((chunk + 1) * chunk_size, group_size)
    cols = tl.arange(0, COLUMNS)  # [C]
    gate_row = shared_row(gate_ptr, strides_gate, group, cols, D, ALIGN, SHARED[0])  # [1, C]
    scale_row = shared_row(scale_ptr, strides_scale, group, cols, D, ALIGN, SHARED[1])
    shift_row = shared_row(shift_ptr, strides_shift, group, cols, D, ALIGN, SHARED[2])
    t_gate_row = shared_tangent(t_gate_ptr, strides_t_gate, group, cols, D, ALIGN, SHARED[0], SINGLE)
    t_scale_row = shared_tangent(t_scale_ptr, strides_t_scale, group, cols, D, ALIGN, SHARED[1], SINGLE)
    t_shift_row = shared_tangent(t_shift_ptr, strides_t_shift, group, cols, D, ALIGN, SHARED[2], SINGLE)

    for start in range(first, end, ROWS):
        token = start + tl.arange(0, ROWS)  # int64 [R]
        row = group * group_size + token
        mask_row = token < end
        mask = mask_row[:, None] & (cols < D)[None, :]  # [R, C]
        gate = row_or(gate_row, gate_ptr, strides_gate, group, token, cols, mask, ALIGN)[0]
        y = load_rows(y_ptr, strides_y, group, token, cols, mask, ALIGN)[0]
        x = load_rows(x_ptr, strides_x, group, token, cols, mask, ALIGN)[0]
        total = (x + gate * y).to(sum_ptr.dtype.element_ty)  # (1), rounded: the backward reads it
        store_rows(sum_ptr, total, row, cols, mask, D)
        n, mean, rstd = standardize(total.to(tl.float32), mask, eps, D, CENTRED)  # (N1)
        scale = row_or(scale_row, scale_ptr, strides_scale, group, token, cols, mask, ALIGN)
        shift = row_or(shift_row, shift_ptr, strides_shift, group, token, cols, mask, ALIGN)
        factor = factor_of(scale, UNIT)
        normed = scaled(n, factor)  # (N3)
        if shift_ptr is not None:
            normed += shift[0]
        store_rows(normed_ptr, normed, row, cols, mask, D)
        tl.store(rstd_ptr + row[:, None], rstd, mask=mask_row[:, None])
        if CENTRED:
            tl.store(mean_ptr + row[:, None], mean, mask=mask_row[:, None])

        for k in range(num_tangents):
            t_row = k * num_groups.to(tl.int64) * group_size + row
            t = tl.zeros([ROWS, COLUMNS], tl.float32)
            if tx_ptr is not None:
                t += load_tangent(tx_ptr, strides_tx, k, group, token, cols, mask, ALIGN)[0]
            if ty_ptr is not None:
                t += gate * load_tangent(ty_ptr, strides_ty, k, group, token, cols, mask, ALIGN)[0]  # (2)
            if t_gate_ptr is not None:
                t += tangent_or(t_gate_row, t_gate_ptr, strides_t_gate, k, group, token, cols, mask, ALIGN)[0] * y
            t = t.to(sum_ptr.dtype.element_ty)
            store_rows(t_sum_ptr, t, t_row, cols, mask, D)
            t = t.to(tl.float32)
            u = jacobian_times(t, n, rstd, D, CENTRED)  # (N2)
            tl.store(t_rstd_ptr + t_row[:, None], -rstd * rstd * row_mean(t * n, D), mask=mask_row[:, None])
            if CENTRED:
                tl.store(t_mean_ptr + t_row[:, None], row_mean(t, D), mask=mask_row[:, None])
            t_scale = tangent_or(t_scale_row, t_scale_ptr, strides_t_scale, k, group, token, cols, mask, ALIGN)
            t_shift = tangent_or(t_shift_row, t_shift_ptr, strides_t_shift, k, group, token, cols, mask, ALIGN)
            store_rows(t_normed_ptr, modulated_tangent(n, (u,), factor, t_scale, t_shift), t_row, cols, mask, D)  # (N4)


def norm_forward(
    x: Tensor, gate: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None, **options: Any
) -> tuple[Tensor, ...]:
    """Return sum, normed, mean and rstd; see :func:`norm_dual_forward`."""
    total, normed, _, _, mean, rstd, *_ = norm_dual_forward(x, gate, y, scale, shift, *[None] * 5, **options)
    return total, normed, mean, rstd


def norm_dual_forward(
    x: Tensor, gate: Tensor, y: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_gate: Tensor | None, ty: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None,
    *, eps: float, centred: bool, unit: bool, dtype: torch.dtype,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return sum, normed, t_sum and t_normed ``[K, ...]``, mean and rstd ``[G, M]`` and their tangents in fp32.

    Without tangents, K is 0. normed is in dtype, sum in the one that PyTorch promotes x, gate and y to. A mean is
    ``[..., G, 0]`` if the norm does not centre.
    """
    G, M, D = x.shape
    tangents = tx, t_gate, ty, t_scale, t_shift
    K = num_tangents(*tangents)
    total = x.new_empty((G, M, D), dtype=result_dtype(x, gate, y))
    normed = x.new_empty((G, M, D), dtype=dtype)
    t_total, t_normed = (z.new_empty((K, *z.shape)) for z in (total, normed))
    rows = (G, M if centred else 0), (G, M)
    statistics = [x.new_empty((*lead, *s), dtype=torch.float32) for lead in ((), (K,)) for s in rows]
    if x.numel():
        operands = tuple(map(unit_rows, (x, gate, y, scale, shift, *tangents)))
        align, tile = alignment(*operands), norm_tile(D, backward=False)
        chunk = min(M, NORM_ROWS)
        chunks = triton.cdiv(M, chunk)
        with on_device(x):
            _gated_norm_kernel[(G * chunks,)](
                *operands, total, normed, t_total, t_normed, *statistics, eps,
                *(strides(z, align) for z in operands), M, chunk, G, chunks, K,
                D=D, CENTRED=centred, UNIT=unit, SHARED=shared_by_rows(x, gate, scale, shift), SINGLE=K == 1,
                ALIGN=align, ROWS=tile.rows, COLUMNS=tile.columns, num_warps=tile.num_warps,
            )  # fmt: skip
    return total, normed, t_total, t_normed, *statistics
