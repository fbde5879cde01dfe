"""Normalize, modulate and, with K tangents, the tangent of both, in one pass."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from ..attention._launch import alignment, strides, unit_rows
from ._tile import (
    jacobian_times,
    load_factor,
    load_rows,
    load_tangent,
    modulated_tangent,
    row_mean,
    scaled,
    standardize,
    store_rows,
)
from .config import config

UNSPECIALIZED = ["num_rows", "group_size"]  # K = 1 is compiled without a loop


@triton.jit(do_not_specialize=UNSPECIALIZED)
def _norm_forward_kernel(
    # inputs, [G, M, D], and tangents, [K, G, M, D]; all but x may be None
    x_ptr, scale_ptr, shift_ptr, tx_ptr, t_scale_ptr, t_shift_ptr,
    # outputs, contiguous: [G, M, D], [K, G, M, D]; statistics [G, M] and their tangents [K, G, M]
    out_ptr, t_out_ptr, mean_ptr, rstd_ptr, t_mean_ptr, t_rstd_ptr,
    eps,
    # strides
    strides_x, strides_scale, strides_shift, strides_tx, strides_t_scale, strides_t_shift,
    # sizes: G M, M, K
    num_rows, group_size, num_tangents,
    D: tl.constexpr, CENTRED: tl.constexpr, UNIT: tl.constexpr, ALIGN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)  # [R]
    cols = tl.arange(0, COLUMNS)  # [C]
    mask_row = row < num_rows
    mask = mask_row[:, None] & (cols < D)[None, :]  # [R, C]
    group, token = row // group_size, row % group_size

    x = load_rows(x_ptr, strides_x, group, token, cols, mask, ALIGN)[0]
    n, mean, rstd = standardize(x, mask, eps, D, CENTRED)  # (1)
    factor = load_factor(scale_ptr, strides_scale, group, token, cols, mask, ALIGN, UNIT)
    out = scaled(n, factor)  # (3)
    if shift_ptr is not None:
        out += load_rows(shift_ptr, strides_shift, group, token, cols, mask, ALIGN)[0]

    if t_out_ptr is not None:
        for k in range(num_tangents):
            t_row = k * num_rows.to(tl.int64) + row
            u = load_tangent(tx_ptr, strides_tx, k, group, token, cols, mask, ALIGN)
            t_mean, t_rstd = tl.zeros([ROWS, 1], tl.float32), tl.zeros([ROWS, 1], tl.float32)
            if tx_ptr is not None:
                t_mean, t_rstd = row_mean(u[0], D), -rstd * rstd * row_mean(u[0] * n, D)
                u = (jacobian_times(u[0], n, rstd, D, CENTRED),)  # (2)
            t_scale = load_tangent(t_scale_ptr, strides_t_scale, k, group, token, cols, mask, ALIGN)
            t_shift = load_tangent(t_shift_ptr, strides_t_shift, k, group, token, cols, mask, ALIGN)
            t_out = modulated_tangent(n, u, factor, t_scale, t_shift)  # (4)
            store_rows(t_out_ptr, t_out, t_row, cols, mask, D)
            tl.store(t_rstd_ptr + t_row[:, None], t_rstd, mask=mask_row[:, None])
            if CENTRED:
                tl.store(t_mean_ptr + t_row[:, None], t_mean, mask=mask_row[:, None])

    # last, so that the loads of the first tangent wait for no store
    store_rows(out_ptr, out, row, cols, mask, D)
    tl.store(rstd_ptr + row[:, None], rstd, mask=mask_row[:, None])
    if CENTRED:
        tl.store(mean_ptr + row[:, None], mean, mask=mask_row[:, None])


def forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, *, eps: float, centred: bool, unit: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out ``[G, M, D]`` in dtype, mean and rstd ``[G, M]``; mean is ``[G, 0]`` if the norm does not centre."""
    none = (None, None, None)
    out, _, mean, rstd, *_ = dual_forward(x, scale, shift, *none, eps=eps, centred=centred, unit=unit, dtype=dtype)
    return out, mean, rstd


def dual_forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None,
    *, eps: float, centred: bool, unit: bool, dtype: torch.dtype,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return out ``[G, M, D]``, t_out ``[K, G, M, D]`` in dtype, mean, rstd ``[G, M]`` and their tangents in fp32.

    Without tangents, K is 0. A mean is ``[..., G, 0]`` if the norm does not centre.
    """
    G, M, D = x.shape
    num = next((t.shape[0] for t in (tx, t_scale, t_shift) if t is not None), 0)
    out = x.new_empty((G, M, D), dtype=dtype)
    t_out = x.new_empty((num, G, M, D), dtype=dtype)
    statistics = [
        x.new_empty((*lead, G, tokens), dtype=torch.float32)
        for lead in ((), (num,))
        for tokens in (M if centred else 0, M)
    ]
    results = out, t_out, *statistics
    if not x.numel():
        return results
    operands = tuple(map(unit_rows, (x, scale, shift, tx, t_scale, t_shift)))
    align = alignment(*operands)
    tile = config(D, backward=False)
    with on_device(x):
        _norm_forward_kernel[(triton.cdiv(G * M, tile.rows),)](
            *operands, *(y if y.numel() else None for y in results), eps, *(strides(y, align) for y in operands),
            G * M, M, num, D=D, CENTRED=centred, UNIT=unit, ALIGN=align, ROWS=tile.rows, COLUMNS=tile.columns,
            num_warps=tile.num_warps,
        )  # fmt: skip
    return results
