"""The rotation of x and of K tangents in one pass: (1) and (2) of README.md.

Shapes: B tokens of a tile, P pairs of a row, padded to a power of two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from .config import NUM_WARPS, block_of


@triton.jit
def _turn(
    x_ptr, out_ptr, stride, offs_n, mask_n, cos, sin,
    D: tl.constexpr, HALF: tl.constexpr, PAIRS: tl.constexpr, REST: tl.constexpr, INTERLEAVED: tl.constexpr,
):  # fmt: skip
    """Rotate the rows at offs_n [B], whose stride is given; rows of out are contiguous. cos, sin [B, P]."""
    rows = offs_n[:, None] * stride
    out_rows = offs_n[:, None] * D
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    BLOCK: tl.constexpr = cos.shape[0]
    if INTERLEAVED:
        col = tl.arange(0, 2 * PAIRS)[None, :]
        mask = mask_n[:, None] & (col < 2 * HALF)
        x = tl.load(x_ptr + rows + col, mask=mask, other=0.0).to(tl.float32)
        first, second = tl.split(tl.reshape(x, (BLOCK, PAIRS, 2)))
        pairs = tl.join(first * cos - second * sin, first * sin + second * cos)  # (1), [B, P, 2]
        tl.store(out_ptr + out_rows + col, tl.reshape(pairs, (BLOCK, 2 * PAIRS)).to(DTYPE), mask=mask)
    else:
        col = tl.arange(0, PAIRS)[None, :]
        mask = mask_n[:, None] & (col < HALF)
        first = tl.load(x_ptr + rows + col, mask=mask, other=0.0).to(tl.float32)
        second = tl.load(x_ptr + rows + col + HALF, mask=mask, other=0.0).to(tl.float32)
        tl.store(out_ptr + out_rows + col, (first * cos - second * sin).to(DTYPE), mask=mask)  # (1)
        tl.store(out_ptr + out_rows + col + HALF, (first * sin + second * cos).to(DTYPE), mask=mask)
    if D > 2 * HALF:
        rest = 2 * HALF + tl.arange(0, REST)[None, :]
        mask = mask_n[:, None] & (rest < D)
        tl.store(out_ptr + out_rows + rest, tl.load(x_ptr + rows + rest, mask=mask), mask=mask)


@triton.jit(do_not_specialize=["heads", "num_tokens", "num_tangents"])
def _rotate_kernel(
    # x, K tangents, tables
    x_ptr, tx_ptr, cos_ptr, sin_ptr,
    # outputs
    out_ptr, t_out_ptr,
    # strides (batch, head, token), of tangents with the tangent's first; sizes; numel: of x
    strides_x, strides_tx, strides_cos, strides_sin, heads, num_tokens, num_tangents, numel,
    # what is compiled, then the tile
    D: tl.constexpr, HALF: tl.constexpr, INTERLEAVED: tl.constexpr, TRANSPOSE: tl.constexpr,
    PAIRS: tl.constexpr, REST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rotate a block of tokens of one head. Grid: G H × blocks, in one dimension, blocks innermost."""
    blocks = tl.cdiv(num_tokens, BLOCK)
    pid = tl.program_id(0)
    pid_gh = (pid // blocks).to(tl.int64)
    g, h = pid_gh // heads, pid_gh % heads
    offs_n = (pid % blocks).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # [B]
    mask_n = offs_n < num_tokens
    col = tl.arange(0, PAIRS)[None, :]
    mask = mask_n[:, None] & (col < HALF)
    cos_ptr += g * strides_cos[0] + h * strides_cos[1]
    sin_ptr += g * strides_sin[0] + h * strides_sin[1]
    cos = tl.load(cos_ptr + offs_n[:, None] * strides_cos[2] + col, mask=mask, other=0.0).to(tl.float32)  # [B, P]
    sin = tl.load(sin_ptr + offs_n[:, None] * strides_sin[2] + col, mask=mask, other=0.0).to(tl.float32)
    if TRANSPOSE:
        sin = -sin  # (2)
    start = pid_gh * num_tokens * D
    if x_ptr is not None:
        x_ptr += g * strides_x[0] + h * strides_x[1]
        _turn(
            x_ptr, out_ptr + start, strides_x[2], offs_n, mask_n, cos, sin, D, HALF, PAIRS, REST, INTERLEAVED
        )  # fmt: skip
    if tx_ptr is not None:
        tx_ptr += g * strides_tx[1] + h * strides_tx[2]
        t_out_ptr += start
        for _ in range(num_tangents):
            _turn(tx_ptr, t_out_ptr, strides_tx[3], offs_n, mask_n, cos, sin, D, HALF, PAIRS, REST, INTERLEAVED)
            tx_ptr += strides_tx[0]
            t_out_ptr += numel


def rotate(
    x: Tensor | None, tx: Tensor | None, cos: Tensor, sin: Tensor, interleaved: bool, transpose: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return ``R x`` and ``R tx``, or with ``Rᵀ``, contiguous, in their dtypes; None for None. All in one launch."""
    if x is None and tx is None:
        return None, None
    x, tx, cos, sin = (y if y is None or y.stride(-1) == 1 else y.contiguous() for y in (x, tx, cos, sin))
    out, t_out = (None if y is None else torch.empty(y.shape, dtype=y.dtype, device=y.device) for y in (x, tx))
    G, H, N, D = (tx[0] if x is None else x).shape
    half = cos.shape[-1]
    pairs = triton.next_power_of_2(half)
    block = block_of(pairs)
    if G * H * N * D:
        with on_device(cos):
            _rotate_kernel[(triton.cdiv(N, block) * G * H,)](
                x, tx, cos, sin, out, t_out,
                _strides(x), _strides(tx), _strides(cos), _strides(sin),
                H, N, 0 if tx is None else len(tx), G * H * N * D,
                D=D, HALF=half, INTERLEAVED=interleaved, TRANSPOSE=transpose,
                PAIRS=pairs, REST=triton.next_power_of_2(D - 2 * half), BLOCK=block, num_warps=NUM_WARPS,
            )  # fmt: skip
    return out, t_out


def _strides(x: Tensor | None) -> tuple[int, ...] | None:
    """Return the strides of all axes but the last, 0 where the tensor is broadcast or has one entry."""
    return None if x is None else tuple(0 if n == 1 else s for n, s in zip(x.shape[:-1], x.stride()))
