"""The norms, their tangents and gradients from PyTorch's own fused kernels, for a CPU and wherever Triton cannot run.

Closed forms; numbers in comments are the equations of README.md. Shapes as in ``reference.py``. Large tensors are cut
into blocks, whose intermediate results stay in the cache.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._torch import native_layer_norm_backward, weight_norm_backward
from .reference import factor, wide_dtype

_BLOCK = 1 << 18  # elements: enough work for each thread, and all intermediate results fit the last cache
_OWN_CALL = 1 << 14  # elements of a group from which a fused call of its own is faster than ops on all groups

Wants = Sequence[bool]  # of x, scale and shift
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, *, eps: float, centred: bool, unit: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out ``[G, M, D]`` in dtype, mean (``[G, 0]`` if the norm does not centre) and rstd ``[G, M]``."""
    if centred and dtype == x.dtype and len(x) == 1 and _takes_weights(x, scale, shift):
        weight, bias = _weights(x, scale, unit)[0], None if shift is None else shift[0, 0].to(wide_dtype(x, scale))
        out, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        return out, mean.squeeze(-1), rstd.squeeze(-1)
    out, _, mean, rstd = dual_forward(
        x, scale, shift, None, None, None, eps=eps, centred=centred, unit=unit, dtype=dtype
    )
    return out, mean, rstd


def dual_forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None,
    *, eps: float, centred: bool, unit: bool, dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:  # fmt: skip
    """Return out ``[G, M, D]`` and t_out ``[K, G, M, D]`` in dtype, mean and rstd; t_out is None without tangents."""
    wide = wide_dtype(x, scale, shift)
    num = next((len(t) for t in (tx, t_scale, t_shift) if t is not None), 0)
    out = x.new_empty(x.shape, dtype=dtype)
    t_out = x.new_empty((num, *x.shape), dtype=dtype) if num else None
    mean, rstd = (x.new_empty((*x.shape[:2], width), dtype=wide) for width in (int(centred), 1))
    for block in _blocks(x.shape):
        state = _standardize(block.wide(x, wide).contiguous(), eps, centred)
        if centred:
            block.of(mean).copy_(state.mean)
        block.of(rstd).copy_(state.rstd)
        s, b = _factor(block, scale, unit, wide), block.wide(shift, wide)
        _write_sum(block.of(out), b, state.n, s)  # (3)
        for k in range(num):
            u, a_k, b_k = (None if t is None else block.wide(t[k], wide) for t in (tx, t_scale, t_shift))
            u = None if u is None else state.jacobian_times(u)
            _write_sum(block.of(t_out[k]), b_k, None if a_k is None else state.n, a_k, u, s)  # (4)
    return out, t_out, mean.flatten(1), rstd.flatten(1)


def backward(
    g: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor,
    *, centred: bool, unit: bool, wants: Wants,
) -> Gradients:  # fmt: skip
    """Return the gradients of x, scale and shift for K cotangents ``[K, G, M, D]``, with K in front; None if unwanted.

    They are those of tangents in (5), with g for h.
    """
    large = x.numel() > 0 and (len(x) == 1 or x[0].numel() >= _OWN_CALL)
    if centred and large and g.dtype == x.dtype and _takes_weights(x, scale, shift):
        return _fused_backward(g, x, scale, shift, mean, rstd, unit, wants)
    grads = _Gradients((None, None, None, x, scale, shift), (False, False, False, *wants), x, len(g))
    _accumulate(grads, None, g, x, scale, None, None, mean, rstd, unit)
    return grads.results()[3:]


def dual_backward(
    g: Tensor | None, h: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None, mean: Tensor, rstd: Tensor,
    *, centred: bool, unit: bool, wants: Wants, t_wants: Wants,
) -> tuple[Gradients, Gradients]:  # fmt: skip
    """Return the gradients of x, scale and shift, then of their tangents; None for those that are not wanted."""
    grads = _Gradients((x, scale, shift, tx, t_scale, t_shift), (*wants, *t_wants), x, len(h))
    _accumulate(grads, g, h, x, scale, tx, t_scale, mean, rstd, unit)
    results = grads.results()
    return results[:3], results[3:]


def _takes_weights(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> bool:
    """Return True if PyTorch's fused norm takes scale and shift as weights: one row a group, in the wide dtype."""
    if any(y is not None and y.shape[1] != 1 for y in (scale, shift)):
        return False
    return x.device.type == "cpu" or x.dtype == wide_dtype(x, scale, shift)


def _weights(x: Tensor, scale: Tensor | None, unit: bool) -> Tensor:
    """Return s of each group, ``[G, D]`` in the wide dtype."""
    wide, shape = wide_dtype(x, scale), (x.shape[0], x.shape[-1])
    return x.new_ones(shape, dtype=wide) if scale is None else factor(scale, unit).to(wide).view(shape)


def _fused_backward(
    g: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor, unit: bool,
    wants: Wants,
) -> Gradients:  # fmt: skip
    """Compute :func:`backward` with one fused call a group, which returns the gradients of its weights too."""
    K, G, D = len(g), len(x), x.shape[-1]
    weights, mean, rstd = _weights(x, scale, unit), mean.unsqueeze(-1), rstd.unsqueeze(-1)
    each = [
        native_layer_norm_backward(g[k, i], x[i], (D,), mean[i], rstd[i], weights[i], weights[i], wants)
        for k in range(K)
        for i in range(G)
    ]
    grads = []
    for y, parts in zip((x, scale, shift), zip(*each)):
        if y is None or parts[0] is None:
            grads.append(None)
        else:
            whole = parts[0] if len(parts) == 1 else torch.stack(parts)
            grads.append(whole.view(K, *y.shape).to(y.dtype))
    return tuple(grads)  # type: ignore[return-value]


class _Block:
    """Some groups and tokens of tensors ``[..., G, M, D]``."""

    def __init__(self, groups: slice, tokens: slice) -> None:
        self._groups, self._tokens = groups, tokens

    def of(self, y: Tensor) -> Tensor:
        """Return this block of y, or the row that its tokens share."""
        return y[..., self._groups, self._tokens if y.shape[-2] > 1 else slice(None), :]

    def wide(self, y: Tensor | None, dtype: torch.dtype) -> Any:
        return None if y is None else self.of(y).to(dtype)


def _blocks(shape: torch.Size) -> Iterator[_Block]:
    G, M, D = shape
    if not shape.numel():
        return
    tokens = min(M, max(1, _BLOCK // D))
    groups = max(1, _BLOCK // (M * D))
    for i in range(0, G, groups):
        for j in range(0, M, tokens):
            yield _Block(slice(i, i + groups), slice(j, j + tokens))


class _Standardized(NamedTuple):
    """n and what its Jacobian needs, of a block in a wide dtype; mean is None if the norm does not centre."""

    n: Tensor
    x: Tensor
    mean: Tensor | None  # [..., 1]
    rstd: Tensor  # [..., 1]

    def jacobian_times(self, v: Tensor) -> Tensor:
        """Return J v of (2), a new tensor."""
        if self.mean is None:
            return self.jacobian_and_dot(v)[0]
        args = v, self.x, v.shape[-1:], self.mean, self.rstd
        return native_layer_norm_backward(*args, None, None, (True, False, False))[0]  # type: ignore[return-value]

    def jacobian_and_dot(self, v: Tensor) -> tuple[Tensor, Tensor]:
        """Return J v and mean(v ∘ n) ``[..., 1]``, new tensors."""
        D = v.shape[-1]
        norm = torch.full_like(self.rstd, math.sqrt(D)).view(-1, 1)
        # the gradient of the weight norm a w/‖w‖ in w and in a, at w = n, with √D in place of ‖n‖ and a = √D rstd
        dv, dot = weight_norm_backward(v.reshape(-1, D), self.n.view(-1, D), self.rstd.view(-1, 1) * norm, norm)
        dv, dot = dv.view(v.shape), dot.view(self.rstd.shape).div_(math.sqrt(D))
        return dv if self.mean is None else dv.sub_(dv.mean(-1, keepdim=True)), dot


def _standardize(x: Tensor, eps: float, centred: bool) -> _Standardized:
    """Return (1)."""
    D = x.shape[-1]
    if centred:  # with weights, PyTorch's kernel runs about twice as fast as without
        n, mean, rstd = torch.native_layer_norm(x, (D,), x.new_ones(D), x.new_zeros(D), eps)
        return _Standardized(n, x, mean, rstd)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    rstd = norm.mul_(1 / math.sqrt(D)).square_().add_(eps).rsqrt_()
    return _Standardized(x * rstd, x, None, rstd)


def _restandardize(x: Tensor, mean: Tensor, rstd: Tensor) -> _Standardized:
    """Return (1) from the statistics; mean: ``[..., 0]`` if the norm does not centre."""
    if mean.shape[-1]:
        return _Standardized((x - mean).mul_(rstd), x, mean, rstd)
    return _Standardized(x * rstd, x, None, rstd)


def _factor(block: _Block, scale: Tensor | None, unit: bool, wide: torch.dtype) -> Any:
    return None if scale is None else factor(block.of(scale), unit).to(wide)


def _write_sum(
    out: Tensor, shift: Tensor | None, a: Tensor | None, a_scale: Tensor | None, b: Tensor | None = None,
    b_scale: Tensor | None = None,
) -> None:  # fmt: skip
    """Write shift + a ∘ a_scale + b ∘ b_scale to out, one rounding; an absent factor is 1, an absent term 0."""
    given = [(y, s) for y, s in ((a, a_scale), (b, b_scale)) if y is not None]
    total = shift
    wide = given[0][0].dtype if given else out.dtype
    buffer = out if out.dtype == wide else out.new_empty(out.shape, dtype=wide)
    for y, s in given:
        if total is None:
            total = y if s is None else torch.mul(y, s, out=buffer)
        elif s is None:
            total = torch.add(total, y, out=buffer)
        else:
            total = torch.addcmul(total, y, s, out=buffer)
    if total is not out:
        out.copy_(total)


_X, _SCALE, _SHIFT, _TX, _T_SCALE, _T_SHIFT = range(6)


class _Gradients:
    """The gradients of x, scale and shift and of their tangents, filled block by block; None if not wanted."""

    def __init__(self, likes: Sequence[Tensor | None], wanted: Wants, x: Tensor, num: int) -> None:
        self._likes = [y if is_wanted else None for y, is_wanted in zip(likes, wanted)]
        self._sums = [y is not None and y.shape[-2] != x.shape[-2] for y in self._likes]  # over tokens
        self._buffers: list[Any] = []
        for i, y in enumerate(self._likes):
            shape = () if y is None else (*((num,) if i >= 3 else ()), *y.shape[-3:])
            if y is None:
                self._buffers.append(None)
            elif self._sums[i] or i in (_SCALE, _SHIFT):  # nothing is put there if g is absent
                self._buffers.append(x.new_zeros(shape, dtype=wide_dtype(y)))
            else:
                self._buffers.append(x.new_empty(shape, dtype=y.dtype))

    def wants(self, *which: int) -> bool:
        return any(self._buffers[i] is not None for i in which)

    def put(self, which: int, block: _Block, part: Tensor, k: int | None = None) -> None:
        """Store one block of a gradient, or add its sum over tokens."""
        buffer = self._buffers[which] if k is None else self._buffers[which][k]
        if self._sums[which]:
            block.of(buffer).add_(part.sum(-2, keepdim=True))
        else:
            block.of(buffer).copy_(part)

    def results(self) -> tuple[Any, ...]:
        return tuple(None if y is None else z.to(y.dtype) for y, z in zip(self._likes, self._buffers))


class _Sum:
    """A sum of products, in place once it has memory of its own; total is None if it is empty."""

    total: Any = None
    _is_own = False

    def add(self, a: Tensor, b: Tensor | None = None) -> None:
        if self.total is None:
            self.total, self._is_own = (a, False) if b is None else (a * b, True)
        elif self._is_own:
            self.total = self.total.add_(a) if b is None else self.total.addcmul_(a, b)
        else:
            self.total, self._is_own = self.total + a if b is None else torch.addcmul(self.total, a, b), True


def _accumulate(
    grads: _Gradients, g: Tensor | None, h: Tensor, x: Tensor, scale: Tensor | None, tx: Tensor | None,
    t_scale: Tensor | None, mean: Tensor, rstd: Tensor, unit: bool,
) -> None:  # fmt: skip
    """Compute (5) to (9), as far as they are wanted."""
    mean, rstd, wide = mean.view(*x.shape[:2], -1), rstd.unsqueeze(-1), rstd.dtype
    for block in _blocks(x.shape):
        state = _restandardize(block.wide(x, wide).contiguous(), block.of(mean), block.of(rstd))
        n, r, s = state.n, state.rstd, _factor(block, scale, unit, wide)
        V, of_scale, f = _Sum(), _Sum(), _Sum()
        if g is not None:
            g_block = block.wide(g, wide)
            if grads.wants(_X):
                V.add(g_block, s)
            if grads.wants(_SCALE):
                of_scale.add(g_block, n)
            if grads.wants(_SHIFT):
                grads.put(_SHIFT, block, g_block)
        for k in range(len(h)):
            h_k = block.wide(h[k], wide)
            t = None if tx is None else block.wide(tx[k], wide)
            H = h_k if s is None or not grads.wants(_X, _TX) else h_k * s
            if t is not None and grads.wants(_X):
                dt, c_h = state.jacobian_and_dot(H)
                if grads.wants(_SCALE):
                    u, c_t = state.jacobian_and_dot(t)
                    of_scale.add(h_k, u)
                else:
                    c_t = (t * n).mean(-1, keepdim=True)
                V.add(t, c_h.mul_(r).neg_())  # (6)
                V.add(H, c_t.mul_(r).neg_())
                f.add((dt * t).mean(-1, keepdim=True))  # (7)
            else:
                dt = state.jacobian_times(H) if grads.wants(_TX) else None
                if t is not None and grads.wants(_SCALE):
                    of_scale.add(h_k, state.jacobian_times(t))
            if grads.wants(_TX):
                grads.put(_TX, block, dt, k)  # (5)
            if t_scale is not None and grads.wants(_X):
                V.add(h_k, block.wide(t_scale[k], wide))
            if grads.wants(_T_SCALE):
                grads.put(_T_SCALE, block, h_k * n, k)
            if grads.wants(_T_SHIFT):
                grads.put(_T_SHIFT, block, h_k, k)
        if grads.wants(_X):
            dx = n.new_zeros(()) if V.total is None else state.jacobian_times(V.total)
            grads.put(_X, block, dx if f.total is None else dx.addcmul_(n, f.total * r, value=-1))  # (8)
        if grads.wants(_SCALE) and of_scale.total is not None:
            grads.put(_SCALE, block, of_scale.total)  # (9)
