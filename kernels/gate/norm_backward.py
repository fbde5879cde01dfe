"""The backward of the gated norm and of its tangents, in one pass.

Gradients of what the rows of a group share are partial sums, which a second kernel adds up. Shapes: a tile is [R, C],
R rows and C columns; one that the rows of a group share is [1, C]. Equation numbers are those of README.md; N marks
those of ``../norm/README.md``.
"""

from collections.abc import Sequence
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
    primal_gradient,
    restandardize,
    scaled,
    store_rows,
    tangent_backward,
)
from ..norm.config import rows_of_partial
from ..norm.partials import sum_partials
from ._launch import num_tangents, shared_by_rows
from ._tile import factor_of, row_or, shared_row, shared_tangent, tangent_or
from .config import norm_tile
from .norm_operands import NormOperands

Wants = Sequence[bool]  # of x, gate, y, scale and shift
_UNSPECIALIZED = ["group_size", "chunk_size", "num_groups", "num_chunks"]  # K = 1 is compiled without a loop


@triton.jit(do_not_specialize=_UNSPECIALIZED)
def _gated_norm_backward_kernel(
    # cotangents of sum and normed, [G, M, D], and of their tangents, [K, G, M, D]; each may be None
    g_sum_ptr, g_ptr, h_sum_ptr, h_ptr,
    # operands, [G, 1 or M, D], tangents, [K, G, 1 or M, D], None where they are not read; statistics, [G, M]
    sum_ptr, gate_ptr, y_ptr, scale_ptr,
    t_sum_ptr, t_gate_ptr, ty_ptr, t_scale_ptr,
    mean_ptr, rstd_ptr,
    # gradients, contiguous, each may be None: [G, M, D], or [G, chunks, D] in fp32 of what rows share
    dx_ptr, d_gate_ptr, dy_ptr, d_scale_ptr, d_shift_ptr,
    # the same with a leading K
    d_tx_ptr, d_t_gate_ptr, d_ty_ptr, d_t_scale_ptr, d_t_shift_ptr,
    # strides
    strides_g_sum, strides_g, strides_h_sum, strides_h,
    strides_sum, strides_gate, strides_y, strides_scale,
    strides_t_sum, strides_t_gate, strides_ty, strides_t_scale,
    # sizes: M, rows of a chunk, G, chunks of a group, tangents of a program
    group_size, chunk_size, num_groups, num_chunks, num_inner,
    # what is compiled: PRIMAL: a gradient of x, gate or y is wanted; SHARED: rows of a group share gate, scale, shift
    D: tl.constexpr, CENTRED: tl.constexpr, UNIT: tl.constexpr, PRIMAL: tl.constexpr, SHARED: tl.constexpr,
    SINGLE: tl.constexpr, ALIGN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    chunk, group, outer = pid % num_chunks, pid // num_chunks % num_groups, pid // num_chunks // num_groups
    first, end = chunk * chunk_size, tl.minimum((chunk + 1) * chunk_size, group_size)
    cols = tl.arange(0, COLUMNS)  # [C]
    gate_row = shared_row(gate_ptr, strides_gate, group, cols, D, ALIGN, SHARED[0])  # [1, C]
    scale_row = shared_row(scale_ptr, strides_scale, group, cols, D, ALIGN, SHARED[1])
    t_gate_row = shared_tangent(t_gate_ptr, strides_t_gate, group, cols, D, ALIGN, SHARED[0], SINGLE)
    t_scale_row = shared_tangent(t_scale_ptr, strides_t_scale, group, cols, D, ALIGN, SHARED[1], SINGLE)
    zero = tl.zeros([ROWS, COLUMNS], tl.float32)
    sum_gate, sum_scale, sum_shift = zero, zero, zero  # of what rows share
    sum_t_gate, sum_t_scale, sum_t_shift = zero, zero, zero

    for start in tl.range(first, end, ROWS, num_stages=STAGES):
        token = start + tl.arange(0, ROWS)  # int64 [R]
        row = group * group_size + token
        mask_row = token < end
        mask = mask_row[:, None] & (cols < D)[None, :]  # [R, C]
        total = load_rows(sum_ptr, strides_sum, group, token, cols, mask, ALIGN)[0]
        n, rstd = restandardize(total, mean_ptr, rstd_ptr, row, mask_row, mask, CENTRED)
        gate = row_or(gate_row, gate_ptr, strides_gate, group, token, cols, mask, ALIGN)
        y = load_rows(y_ptr, strides_y, group, token, cols, mask, ALIGN)
        factor = factor_of(row_or(scale_row, scale_ptr, strides_scale, group, token, cols, mask, ALIGN), UNIT)
        dy, of_gate, of_scale, of_shift = zero, zero, zero, zero
        V, f = zero, tl.zeros([ROWS, 1], tl.float32)  # of (N6) and (N7)
        if g_ptr is not None:
            g = load_rows(g_ptr, strides_g, group, token, cols, mask, ALIGN)[0]
            V += scaled(g, factor)
            of_scale += g * n
            of_shift += g

        for inner in range(num_inner):
            k = outer * num_inner + inner
            t_row = k * num_groups * group_size + row
            G = zero  # the cotangent of the sum's tangent, (8)
            if h_sum_ptr is not None:
                G += load_tangent(h_sum_ptr, strides_h_sum, k, group, token, cols, mask, ALIGN)[0]
            if h_ptr is not None:
                h = load_tangent(h_ptr, strides_h, k, group, token, cols, mask, ALIGN)[0]
                H = scaled(h, factor)
                if t_sum_ptr is not None:
                    t = load_tangent(t_sum_ptr, strides_t_sum, k, group, token, cols, mask, ALIGN)[0]
                    if d_scale_ptr is not None:
                        of_scale += h * jacobian_times(t, n, rstd, D, CENTRED)  # (N9)
                    if PRIMAL:
                        dt, terms, f_k = tangent_backward(H, t, n, rstd, D, CENTRED)
                        G += dt
                        V += terms  # (N6)
                        f += f_k  # (N7)
                if t_sum_ptr is None or not PRIMAL:
                    G += jacobian_times(H, n, rstd, D, CENTRED)
                if t_scale_ptr is not None and PRIMAL:
                    V += (
                        h * tangent_or(t_scale_row, t_scale_ptr, strides_t_scale, k, group, token, cols, mask, ALIGN)[0]
                    )
                if d_t_scale_ptr is not None:
                    sum_t_scale = _keep(d_t_scale_ptr, sum_t_scale, h * n, t_row, cols, mask, D, SHARED[1])
                if d_t_shift_ptr is not None:
                    sum_t_shift = _keep(d_t_shift_ptr, sum_t_shift, h, t_row, cols, mask, D, SHARED[2])
            store_rows(d_tx_ptr, G, t_row, cols, mask, D)
            if t_gate_ptr is not None:
                dy += (
                    tangent_or(t_gate_row, t_gate_ptr, strides_t_gate, k, group, token, cols, mask, ALIGN)[0] * G
                )  # (3)
            if ty_ptr is not None:
                of_gate += load_tangent(ty_ptr, strides_ty, k, group, token, cols, mask, ALIGN)[0] * G  # (4)
            if d_ty_ptr is not None:
                store_rows(d_ty_ptr, gate[0] * G, t_row, cols, mask, D)  # (5)
            if d_t_gate_ptr is not None:
                sum_t_gate = _keep(d_t_gate_ptr, sum_t_gate, y[0] * G, t_row, cols, mask, D, SHARED[0])  # (6)

        if PRIMAL:
            G = primal_gradient(V, f, n, rstd, D, CENTRED)  # (N8)
            if g_sum_ptr is not None:
                G += load_rows(g_sum_ptr, strides_g_sum, group, token, cols, mask, ALIGN)[0]  # (8)
            store_rows(dx_ptr, G, row, cols, mask, D)
            if dy_ptr is not None:
                store_rows(dy_ptr, dy + gate[0] * G, row, cols, mask, D)  # (3)
            if d_gate_ptr is not None:
                sum_gate = _keep(d_gate_ptr, sum_gate, of_gate + y[0] * G, row, cols, mask, D, SHARED[0])  # (4)
        if d_scale_ptr is not None:
            sum_scale = _keep(d_scale_ptr, sum_scale, of_scale, row, cols, mask, D, SHARED[1])  # (N9)
        if d_shift_ptr is not None:
            sum_shift = _keep(d_shift_ptr, sum_shift, of_shift, row, cols, mask, D, SHARED[2])

    slot = group * num_chunks + chunk
    t_slot = outer * num_groups * num_chunks + slot
    _store_partial(d_gate_ptr, sum_gate, slot, cols, D, SHARED[0])
    _store_partial(d_scale_ptr, sum_scale, slot, cols, D, SHARED[1])
    _store_partial(d_shift_ptr, sum_shift, slot, cols, D, SHARED[2])
    _store_partial(d_t_gate_ptr, sum_t_gate, t_slot, cols, D, SHARED[0])
    _store_partial(d_t_scale_ptr, sum_t_scale, t_slot, cols, D, SHARED[1])
    _store_partial(d_t_shift_ptr, sum_t_shift, t_slot, cols, D, SHARED[2])


@triton.jit
def _keep(ptr, sums, tile, row, cols, mask, D: tl.constexpr, SHARED: tl.constexpr):
    """Return the sums with tile added, or store tile and return them unchanged if each row has its own gradient."""
    if SHARED:
        sums += tile
    else:
        store_rows(ptr, tile, row, cols, mask, D)
    return sums


@triton.jit
def _store_partial(ptr, sums, slot, cols, D: tl.constexpr, SHARED: tl.constexpr):
    """Sum a tile over its rows into a row of [slots, D], if rows share the gradient and ptr is not None."""
    if ptr is not None and SHARED:
        tl.store(ptr + slot * D + cols, tl.sum(sums, 0), mask=cols < D)


Gradients = tuple[Tensor | None, ...]  # of x, gate, y, scale and shift, then of their tangents


def norm_dual_backward(operands: NormOperands, *, centred: bool, unit: bool, wants: Wants, t_wants: Wants) -> Gradients:
    """Return the gradients of x, gate, y, scale and shift, then of their tangents, None for those not wanted.

    Those of x and its tangent are in the dtype of sum.
    """
    (*_, K), options = _sizes(operands), {"centred": centred, "unit": unit}
    likes = operands.sum, operands.gate, operands.y, operands.scale, operands.shift
    are_shared = shared_by_rows(operands.sum, *likes)
    shared = tuple(want and is_shared for want, is_shared in zip(t_wants, are_shared))
    if K > 1 and any(wants) and any(shared):
        # a program holds the sums of one tangent: those of K are a launch of their own
        own = tuple(want and not is_shared for want, is_shared in zip(t_wants, are_shared))
        grads = _gradients(operands, (*wants, *own), **options)
        alone = operands._replace(g_sum=None, g=None, t_sum=None, t_gate=None, ty=None, t_scale=None, t_shift=None)
        sums = _gradients(alone, (*(False,) * 5, *shared), **options)
        return tuple(a if b is None else b for a, b in zip(grads, sums))
    return _gradients(operands, (*wants, *t_wants), **options)


def _gradients(operands: NormOperands, wanted: Wants, *, centred: bool, unit: bool) -> Gradients:
    G, M, D, K = _sizes(operands)
    likes = (operands.sum, operands.gate, operands.y, operands.scale, operands.shift) * 2
    chunk = rows_of_partial(G, M) if M else 1
    chunks = triton.cdiv(M, chunk)
    results: list[Any] = [None] * len(likes)
    shared, constant = [], []  # those that are summed up, and those that are zero
    for i, (like, is_wanted) in enumerate(zip(likes, wanted)):
        if like is None or not is_wanted:
            continue
        lead, is_shared = () if i < 5 else (K,), like.shape[1] != M
        if not operands.sum.numel() or (i in (8, 9) and operands.h is None):
            results[i] = like.new_zeros((*lead, *like.shape))
            constant.append(i)
        elif is_shared:
            results[i] = like.new_empty((*lead, G, chunks, D), dtype=torch.float32)
            shared.append(i)
        else:
            results[i] = like.new_empty((*lead, G, M, D))
    written = [None if i in constant else dx for i, dx in enumerate(results)]
    if all(dx is None for dx in written):
        return tuple(results)
    inner = 1 if max(shared, default=0) > 4 else K  # tangents of one program
    given = tuple(map(unit_rows, _read(operands, written)))
    align, tile = alignment(*given), norm_tile(D, backward=True)
    with on_device(operands.sum):
        _gated_norm_backward_kernel[(G * chunks * (K // inner if inner else 1),)](
            *given, operands.mean.contiguous(), operands.rstd.contiguous(), *written,
            *(strides(z, align) for z in given),
            M, chunk, G, chunks, inner,
            D=D, CENTRED=centred, UNIT=unit, PRIMAL=any(wanted[:3]),
            SHARED=shared_by_rows(*likes[:2], *likes[3:5]), SINGLE=K == 1,
            ALIGN=align, ROWS=tile.rows, COLUMNS=tile.columns, STAGES=tile.stages, num_warps=tile.num_warps,
        )  # fmt: skip
    if shared:
        sums = sum_partials([results[i] for i in shared], [likes[i].dtype for i in shared])
        for i, total in zip(shared, sums):
            results[i] = total
    return tuple(results)


def _sizes(operands: NormOperands) -> tuple[int, int, int, int]:
    """Return G, M, D and K."""
    G, M, D = operands.sum.shape
    return G, M, D, num_tangents(operands.h_sum, operands.h)


def _read(operands: NormOperands, written: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """Return the operands that the kernel takes, None for those that no gradient needs."""
    _, d_gate, dy, d_scale, _, _, d_t_gate, d_ty, *_ = (z is not None for z in written)
    is_primal = any(z is not None for z in written[:3])
    c = operands
    return (
        c.g_sum if is_primal else None, c.g, c.h_sum, c.h,
        c.sum, c.gate if dy or d_ty else None, c.y if d_gate or d_t_gate else None, c.scale,
        c.t_sum if is_primal or d_scale else None, c.t_gate if dy else None, c.ty if d_gate else None,
        c.t_scale if is_primal else None,
    )  # fmt: skip
