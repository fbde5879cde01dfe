"""The activations and K tangents in one pass: (1) and (2) of README.md."""

import triton
import triton.language as tl
from torch import Tensor

from ._tile import Problem, curve, empty, load, locate, store


@triton.jit
def _forward_kernel(
    # x, b, tx, tb
    x_ptr, b_ptr, tx_ptr, tb_ptr,
    # outputs
    out_ptr, t_out_ptr,
    # strides per input, of tangents and of rows; sizes; numel: of x
    strides, num_tangents, num_rows, row_size, numel,
    # what is compiled, then the tile
    KIND: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    row, col, mask = locate(num_rows, row_size, ROWS, COLS)
    offs = row * row_size + col  # [R, C]
    phi, slope, _ = curve(load(x_ptr, row * strides[0][1] + col, mask), KIND)
    out = phi
    if b_ptr is not None:
        b = load(b_ptr, row * strides[1][1] + col, mask)
        out, slope = phi * b, slope * b
    store(out_ptr, offs, out, mask)  # (1)
    if t_out_ptr is not None:
        for _ in range(num_tangents):
            if tx_ptr is not None:
                t_out = slope * load(tx_ptr, row * strides[2][1] + col, mask)  # (2)
                tx_ptr += strides[2][0]
            if tb_ptr is not None:
                of_b = phi * load(tb_ptr, row * strides[3][1] + col, mask)
                tb_ptr += strides[3][0]
                t_out = of_b if tx_ptr is None else t_out + of_b
            store(t_out_ptr, offs, t_out, mask)
            t_out_ptr += numel


def forward(x: Tensor, b: Tensor | None, kind: str) -> Tensor:
    """Return ``φ(x) ∘ b``, contiguous, in the dtype of x."""
    out = empty(x, x.dtype)
    Problem((x, b, None, None), x.ndim).launch(_forward_kernel, (out, None), 0, kind)
    return out


def dual_forward(x: Tensor, b: Tensor | None, tx: Tensor | None, tb: Tensor | None, kind: str) -> tuple[Tensor, Tensor]:
    """Return out and its tangents, ``[K, ...]``."""
    given = tb if tx is None else tx
    assert given is not None
    out, t_out = empty(x, x.dtype), empty(given, x.dtype)
    Problem((x, b, tx, tb), x.ndim).launch(_forward_kernel, (out, t_out), len(given), kind)
    return out, t_out
