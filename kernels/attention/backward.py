"""Run the joint backward of attention and its tangents: choose the kernels, compute the row terms that they share."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from .._common.launch import on_device
from . import _launch
from ._autotune import tuned
from ._tile import load_rows, matrix, row_dot, tangent_matrices, tangent_matrix
from .backward_keys import _dual_dkdv_kernel
from .backward_queries import _dual_dq_kernel
from .config import Config, config_beside, config_for

Outputs = Sequence[Tensor | None]


def _rows_of(width: int) -> int:
    """Return the number of queries whose rows of G, O and tO fit a program's registers."""
    return 64 if width <= 128 else 16


@triton.jit(do_not_specialize=["heads", "nq", "n_tangents"])
def _row_terms_kernel(
    # cotangents and what they belong to: G and H, O and tO
    g_ptr, h_ptr, out_ptr, t_out_ptr,
    # row terms
    a_ptr, c_ptr,
    # strides (batch, head, row, column), of h and t_out with the tangent's first
    strides_g, strides_h, strides_out, strides_t_out,
    # sizes, then constexprs
    heads, nq, n_tangents,
    VALUE_DIM: tl.constexpr, ALIGN: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Compute a = rowsum(H∘O) and c = rowsum(H∘tO) of each tangent, c of the first with rowsum(G∘O): equation (7).

    Grid: B H × blocks.
    """
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty  # G and H rounded as the other kernels round them
    blocks = tl.cdiv(nq, BLOCK_M)
    pid = tl.program_id(0)
    pid_bh = (pid // blocks).to(tl.int64)
    b, h_q = pid_bh // heads, pid_bh % heads
    offs_m = pid % blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_row = pid_bh * nq + offs_m  # [M]
    stride_t = (tl.num_programs(0) // blocks).to(tl.int64) * nq  # B H nq
    mask_m = offs_m < nq
    out = load_rows(matrix(out_ptr, strides_out, b, h_q, ALIGN), offs_m, nq, VALUE_DIM, DTYPE)  # [M, Dv]
    g = load_rows(matrix(g_ptr, strides_g, b, h_q, ALIGN), offs_m, nq, VALUE_DIM, DTYPE)  # [M, Dv]
    c = tl.zeros([BLOCK_M], tl.float32) if len(g) == 0 else row_dot(g, out)  # [M]
    if h_ptr is None:
        tl.store(c_ptr + offs_row, c, mask=mask_m)
    else:
        h_mats = tangent_matrices(h_ptr, strides_h, 0, b, h_q, ALIGN)
        t_out_mats = tangent_matrices(t_out_ptr, strides_t_out, 0, b, h_q, ALIGN)
        for t in range(n_tangents):
            h = load_rows(tangent_matrix(h_mats, t), offs_m, nq, VALUE_DIM, DTYPE)  # [M, Dv]
            if len(t_out_mats) > 0:
                c += row_dot(h, load_rows(tangent_matrix(t_out_mats, t), offs_m, nq, VALUE_DIM, tl.float32))
            tl.store(a_ptr + t * stride_t + offs_row, row_dot(h, out), mask=mask_m)  # (7)
            tl.store(c_ptr + t * stride_t + offs_row, c, mask=mask_m)
            c = tl.zeros([BLOCK_M], tl.float32)


def dual_backward(
    g: Tensor | None, h: Tensor | None,
    q: Tensor, k: Tensor, v: Tensor, tq: Tensor | None, tk: Tensor | None, tv: Tensor | None, mask: Tensor | None,
    out: Tensor, t_out: Tensor | None, lse: Tensor, mu: Tensor | None,
    *, scale: float, is_causal: bool, need_tangent_grads: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Compute the gradients of ``⟨g, out⟩ + Σ ⟨h, t_out⟩``, out and t_out being ``dual_forward``'s, by Triton kernels.

    g: ``[B, Hq, Nq, Dv]`` or None for zero; h: ``[K, B, Hq, Nq, Dv]`` or None for zero; the others as ``dual_forward``
    takes and returns them. need_tangent_grads: also return the gradients of tangents that are None.

    Returns ``(dq, dk, dv, dtq, dtk, dtv)``, each in the dtype of its tensor, or in h's if that tangent is None. The
    last three are None without h, and for a tangent that is None unless need_tangent_grads.
    """
    tangents = (tq, tk, tv)
    if all(x is None for x in tangents):
        t_out = mu = None
    K = 1 if h is None else len(h)
    d_tangents: list[Tensor | None] = [None, None, None]
    if h is not None:
        d_tangents = [
            torch.empty((K, *x.shape), dtype=(h if t is None else t).dtype, device=x.device)
            if need_tangent_grads or t is not None
            else None
            for x, t in zip((q, k, v), tangents)
        ]
    # the gradients of the primals are summed over the tangents in float32
    d_primals = [torch.empty(x.shape, dtype=x.dtype if K == 1 else torch.float32, device=x.device) for x in (q, k, v)]

    g, h, tq, tk, tv = (_launch.cast(x, q.dtype) for x in (g, h, tq, tk, tv))
    g, h, out, t_out, *rows = map(_launch.unit_rows, (g, h, out, t_out, q, k, v, tq, tk, tv))
    lse, mu = lse.contiguous(), None if mu is None else mu.contiguous()
    with on_device(q):
        base = _launch.mask_base(mask)
        a, c = _row_terms(g, h, out, t_out)
        for t in range(K):
            problem = _Problem(
                *rows[:3], *_of_tangent(t, *rows[3:]), g if t == 0 else None, *_of_tangent(t, h), mask,
                lse, base, c[t], *_of_tangent(t, a, mu), scale, is_causal, add=t > 0,
            )  # fmt: skip
            d_tangent = _of_tangent(t, *d_tangents)
            _run_side(_dual_dkdv_kernel, "dkdv", problem, d_primals[1:], d_tangent[1:])
            _run_side(_dual_dq_kernel, "dq", problem, d_primals[:1], d_tangent[:1])
    return *(d.to(x.dtype) for d, x in zip(d_primals, (q, k, v))), *d_tangents


def _of_tangent(t: int, *tensors: Tensor | None) -> list[Tensor | None]:
    return [None if x is None else x[t] for x in tensors]


@dataclass(frozen=True)
class _Problem:
    """The backward of one tangent. add: add the gradients of the primals to what the outputs hold."""

    q: Tensor
    k: Tensor
    v: Tensor
    tq: Tensor | None
    tk: Tensor | None
    tv: Tensor | None
    g: Tensor | None
    h: Tensor | None
    mask: Tensor | None
    lse: Tensor
    base: Tensor | None
    c: Tensor
    a: Tensor | None
    mu: Tensor | None
    scale: float
    is_causal: bool
    add: bool

    def without_tangents(self) -> "_Problem":
        return replace(self, tq=None, tk=None, tv=None, h=None, a=None, mu=None)

    def of_tangent_gradients(self) -> "_Problem":
        """Return attention without tangents and with cotangent H, whose gradients are the tangents', equation (13)."""
        return replace(self.without_tangents(), g=self.h, c=self.a, add=False)


def _run_side(kernel, side: str, problem: _Problem, d_primals: Outputs, d_tangents: Outputs) -> None:
    """Fill one side's gradients: in one joint launch, or the primals' first, then the tangents' by the plain kernel."""
    none = (None,) * len(d_primals)
    wanted = any(x is not None for x in d_tangents)
    if problem.h is None:
        _run(kernel, f"{side}-plain", problem, (*d_primals, *none))
    elif wanted and config_for(problem.q, _width(problem), f"{side}-joint") is not None:
        _run(kernel, f"{side}-joint", problem, (*d_primals, *d_tangents))
    else:
        _run(kernel, f"{side}-primal", problem, (*d_primals, *none))
        if wanted:
            _run(kernel, f"{side}-plain", problem.of_tangent_gradients(), (*d_tangents, *none))


def _run(kernel, direction: str, x: _Problem, outputs: Outputs) -> None:
    heads, nq, D = x.q.shape[1:]
    batch, heads_k, nk, Dv = x.v.shape
    rows = (x.q, x.k, x.v, x.tq, x.tk, x.tv, x.g, x.h)
    align = _launch.alignment(*rows)
    mask_dtype = None if x.mask is None else x.mask.dtype

    def launch(config: Config) -> None:
        if direction.startswith("dkdv"):
            programs = batch * heads_k * triton.cdiv(nk, config.block_n)
        else:
            programs = batch * heads * triton.cdiv(nq, config.block_m)
        kernel[(programs,)](
            *rows, x.mask, x.lse, x.base, x.c, x.a, x.mu, *outputs, float(x.scale),
            *(_launch.strides(y, align) for y in rows), _launch.strides(x.mask, 1), heads, nq, nk,
            GROUP=heads // heads_k, HEAD_DIM=D, VALUE_DIM=Dv, CAUSAL=x.is_causal, ADD=x.add,
            ALIGN=align, PRECISION=_launch.dot_precision(x.q), BLOCK_M=config.block_m, BLOCK_N=config.block_n,
            num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip

    config = config_beside(x.mask, x.q, _width(x), direction) or config_for(x.q, _width(x), direction)
    if not x.add:  # timing would add to the gradients repeatedly
        config = tuned(config, launch, x.q, direction, (D, Dv, x.is_causal, heads // heads_k, mask_dtype))
    launch(config)


def _row_terms(g: Tensor | None, h: Tensor | None, out: Tensor, t_out: Tensor | None) -> tuple[Tensor | None, Tensor]:
    """Return a and c, each ``[K, B, H, Nq]`` in float32; a is None without h."""
    B, H, nq, Dv = out.shape
    K = 1 if h is None else len(h)
    c = torch.empty((K, B, H, nq), dtype=torch.float32, device=out.device)
    a = None if h is None else torch.empty_like(c)
    rows = (g, h, out, t_out)
    align = _launch.alignment(*rows)
    block = _rows_of(Dv)
    _row_terms_kernel[(B * H * triton.cdiv(nq, block),)](
        *rows, a, c, *(_launch.strides(x, align) for x in rows), H, nq, K,
        VALUE_DIM=Dv, ALIGN=align, BLOCK_M=block,
    )  # fmt: skip
    return a, c


def _width(x: _Problem) -> int:
    return max(x.q.shape[-1], x.v.shape[-1])
