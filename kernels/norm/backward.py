"""The backward of the norm and of its tangents, in one pass; gradients of scale and shift as partial sums."""

from collections.abc import Sequence
from typing import Any, NamedTuple

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
    primal_gradient,
    restandardize,
    scaled,
    store_rows,
    tangent_backward,
)
from .config import config, rows_of_partial
from .partials import sum_partials

Wants = Sequence[bool]  # of x, scale and shift
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


@triton.jit(
    do_not_specialize=["group_size", "chunk_size", "num_groups", "num_chunks"]
)  # K = 1 is compiled without a loop
def _norm_backward_kernel(
    # inputs: cotangents of out and t_out, operands, tangents; all but h and x may be None
    g_ptr, h_ptr, x_ptr, scale_ptr, tx_ptr, t_scale_ptr, mean_ptr, rstd_ptr,
    # outputs, contiguous, each may be None: [G, M, D] or, of a scale or shift that tokens share, [G, chunks, D] in fp32
    dx_ptr, dscale_ptr, dshift_ptr,
    # the same with a leading K
    dtx_ptr, dt_scale_ptr, dt_shift_ptr,
    # strides
    strides_g, strides_h, strides_x, strides_scale, strides_tx, strides_t_scale,
    # sizes: M, tokens of a chunk, G, chunks of a group, tangents of a program
    group_size, chunk_size, num_groups, num_chunks, num_inner,
    D: tl.constexpr, CENTRED: tl.constexpr, UNIT: tl.constexpr, ALIGN: tl.constexpr,
    SCALE_PER_TOKEN: tl.constexpr, SHIFT_PER_TOKEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    pid = tl.program_id(0).to(tl.int64)
    chunk, group, outer = pid % num_chunks, pid // num_chunks % num_groups, pid // num_chunks // num_groups
    first, end = chunk * chunk_size, tl.minimum((chunk + 1) * chunk_size, group_size)
    cols = tl.arange(0, COLUMNS)  # [C]
    sum_scale, sum_shift, sum_t_scale, sum_t_shift = (
        tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32),
        tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32),
    )  # fmt: skip

    for start in tl.range(first, end, ROWS, num_stages=STAGES):
        token = start + tl.arange(0, ROWS)  # int64 [R]
        row = group * group_size + token
        mask_row = token < end
        mask = mask_row[:, None] & (cols < D)[None, :]  # [R, C]
        x = load_rows(x_ptr, strides_x, group, token, cols, mask, ALIGN)[0]
        g = load_rows(g_ptr, strides_g, group, token, cols, mask, ALIGN)
        factor = load_factor(scale_ptr, strides_scale, group, token, cols, mask, ALIGN, UNIT)
        n, rstd = restandardize(x, mean_ptr, rstd_ptr, row, mask_row, mask, CENTRED)

        V, f = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, 1], tl.float32)
        of_scale, of_shift = tl.zeros([ROWS, COLUMNS], tl.float32), tl.zeros([ROWS, COLUMNS], tl.float32)
        if g_ptr is not None:
            V += scaled(g[0], factor)
            of_scale += g[0] * n
            of_shift += g[0]

        for inner in range(num_inner):
            k = outer * num_inner + inner
            t_row = k * num_groups * group_size + row
            h = load_tangent(h_ptr, strides_h, k, group, token, cols, mask, ALIGN)[0]
            H = scaled(h, factor)
            if tx_ptr is not None:
                t = load_tangent(tx_ptr, strides_tx, k, group, token, cols, mask, ALIGN)[0]
                if dx_ptr is not None:
                    dt, terms, f_k = tangent_backward(H, t, n, rstd, D, CENTRED)
                    V += terms  # (6)
                    f += f_k  # (7)
                    store_rows(dtx_ptr, dt, t_row, cols, mask, D)
                elif dtx_ptr is not None:
                    store_rows(dtx_ptr, jacobian_times(H, n, rstd, D, CENTRED), t_row, cols, mask, D)  # (5)
                if dscale_ptr is not None:
                    of_scale += h * jacobian_times(t, n, rstd, D, CENTRED)
            elif dtx_ptr is not None:
                store_rows(dtx_ptr, jacobian_times(H, n, rstd, D, CENTRED), t_row, cols, mask, D)
            if t_scale_ptr is not None and dx_ptr is not None:
                V += h * load_tangent(t_scale_ptr, strides_t_scale, k, group, token, cols, mask, ALIGN)[0]
            if dt_scale_ptr is not None:
                if SCALE_PER_TOKEN:
                    store_rows(dt_scale_ptr, h * n, t_row, cols, mask, D)
                else:
                    sum_t_scale += h * n
            if dt_shift_ptr is not None:
                if SHIFT_PER_TOKEN:
                    store_rows(dt_shift_ptr, h, t_row, cols, mask, D)
                else:
                    sum_t_shift += h

        if dx_ptr is not None:
            store_rows(dx_ptr, primal_gradient(V, f, n, rstd, D, CENTRED), row, cols, mask, D)  # (8)
        if dscale_ptr is not None:  # (9)
            if SCALE_PER_TOKEN:
                store_rows(dscale_ptr, of_scale, row, cols, mask, D)
            else:
                sum_scale += of_scale
        if dshift_ptr is not None:
            if SHIFT_PER_TOKEN:
                store_rows(dshift_ptr, of_shift, row, cols, mask, D)
            else:
                sum_shift += of_shift

    slot = group * num_chunks + chunk
    t_slot = outer * num_groups * num_chunks + slot
    if not SCALE_PER_TOKEN:
        _store_partial(dscale_ptr, sum_scale, slot, cols, D)
        _store_partial(dt_scale_ptr, sum_t_scale, t_slot, cols, D)
    if not SHIFT_PER_TOKEN:
        _store_partial(dshift_ptr, sum_shift, slot, cols, D)
        _store_partial(dt_shift_ptr, sum_t_shift, t_slot, cols, D)


@triton.jit
def _store_partial(ptr, tile, slot, cols, D: tl.constexpr):
    """Sum a tile over its rows into a row of [slots, D], if ptr is not None."""
    if ptr is not None:
        tl.store(ptr + slot * D + cols, tl.sum(tile, 0), mask=cols < D)


class _Operands(NamedTuple):
    """The tensors that the kernel reads; h, tx and t_scale have K in front."""

    g: Tensor | None
    h: Tensor
    x: Tensor
    scale: Tensor | None
    tx: Tensor | None
    t_scale: Tensor | None


class _Options(NamedTuple):
    centred: bool
    unit: bool


def backward(
    g: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor,
    *, centred: bool, unit: bool, wants: Wants,
) -> Gradients:  # fmt: skip
    """Return the gradients of x, scale and shift for K cotangents ``[K, G, M, D]``, with K in front; None if unwanted.

    They are those of tangents in (5), with g for h.
    """
    operands = _Operands(None, g, x, scale, None, None)
    likes = (None, None, None, x, scale, shift)
    return _gradients(operands, likes, (False, False, False, *wants), mean, rstd, _Options(centred, unit))[3:]


def dual_backward(
    g: Tensor | None, h: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None, mean: Tensor, rstd: Tensor, t_rstd: Tensor,
    *, centred: bool, unit: bool, wants: Wants, t_wants: Wants,
) -> tuple[Gradients, Gradients]:  # fmt: skip
    """Return the gradients of x, scale and shift, then of their tangents; None for those that are not wanted.

    t_rstd is not read: the kernel has the rows that give it in registers.
    """
    operands, options = _Operands(g, h, x, scale, tx, t_scale), _Options(centred, unit)
    likes, wanted = (x, scale, shift, tx, t_scale, t_shift), (*wants, *t_wants)
    if len(h) > 1 and any(wants) and any(w and _is_shared(y, x) for y, w in zip(likes[4:], wanted[4:])):
        # one program holds the sums of one tangent: those of K are a launch of their own
        grads = _gradients(operands, likes, (*wanted[:4], False, False), mean, rstd, options)
        alone = operands._replace(g=None, tx=None, t_scale=None)
        sums = _gradients(alone, likes, (*(False,) * 4, *wanted[4:]), mean, rstd, options)
        return grads[:3], (grads[3], *sums[4:])
    grads = _gradients(operands, likes, wanted, mean, rstd, options)
    return grads[:3], grads[3:]


def _gradients(
    operands: _Operands, likes: Sequence[Tensor | None], wanted: Wants, mean: Tensor, rstd: Tensor, options: _Options
) -> tuple[Any, ...]:
    """Return the gradients of x, scale and shift, then of their tangents, each in the dtype of its tensor in likes."""
    x, num = operands.x, len(operands.h)
    G, M, D = x.shape
    lead = [(), (), (), *[(num,)] * 3]
    likes = [y if is_wanted else None for y, is_wanted in zip(likes, wanted)]
    if not x.numel():
        return tuple(None if y is None else y.new_zeros((*k, *y.shape[-3:])) for y, k in zip(likes, lead))
    chunk = rows_of_partial(G, M)
    num_chunks = triton.cdiv(M, chunk)
    shared = [i for i, y in enumerate(likes) if i % 3 and _is_shared(y, x)]
    results = [
        None if y is None
        else x.new_empty((*k, G, num_chunks, D), dtype=torch.float32) if i in shared
        else x.new_empty((*k, G, M, D), dtype=y.dtype)
        for i, (y, k) in enumerate(zip(likes, lead))
    ]  # fmt: skip
    inner = 1 if max(shared, default=0) > 3 else num  # tangents of one program
    operands = _Operands(*map(unit_rows, operands))
    align = alignment(*operands)
    tile = config(D, backward=True)
    with on_device(x):
        _norm_backward_kernel[(G * num_chunks * (num // inner),)](
            *operands, mean.contiguous(), rstd.contiguous(), *results, *(strides(y, align) for y in operands),
            M, chunk, G, num_chunks, inner, D=D, CENTRED=options.centred, UNIT=options.unit, ALIGN=align,
            SCALE_PER_TOKEN=not {1, 4} & set(shared), SHIFT_PER_TOKEN=not {2, 5} & set(shared),
            ROWS=tile.rows, COLUMNS=tile.columns, STAGES=tile.stages, num_warps=tile.num_warps,
        )  # fmt: skip
    if shared:
        sums = sum_partials([results[i] for i in shared], [likes[i].dtype for i in shared])
        for i, total in zip(shared, sums):
            results[i] = total
    return tuple(results)


def _is_shared(y: Tensor | None, x: Tensor) -> bool:
    """Return True for a scale or shift, or a tangent of one, that the tokens of a group share."""
    return y is not None and y.shape[-2] != x.shape[-2]
