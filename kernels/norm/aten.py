"""The norms, their tangents and gradients from PyTorch's own fused kernels, for a CPU and wherever Triton cannot run.

Closed forms; numbers in comments are the equations of README.md. Shapes as in ``reference.py``. Large tensors are cut
into blocks, whose intermediate results stay in the cache.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._torch import native_layer_norm, native_layer_norm_backward, weight_norm_backward
from .reference import factor, wide_dtype

_BLOCK = 1 << 19  # elements; chosen so that about ten float32 results of this size fit 32 MB of cache
_OWN_CALL = 1 << 14  # elements of a group from which it has a fused call of its own; estimated, not tuned

Wants = Sequence[bool]  # of x, scale and shift
Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None, *, eps: float, centred: bool, unit: bool, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return out ``[G, M, D]`` in dtype, mean and rstd ``[G, M]``; mean is ``[G, 0]`` if the norm does not centre."""
    if centred and dtype == x.dtype and len(x) == 1 and x.numel() and _takes_weights(x, scale, shift):
        weight, bias = _weights(x, scale, unit)[0], None if shift is None else shift[0, 0].to(wide_dtype(x, scale))
        out, mean, rstd = native_layer_norm(x, x.shape[-1:], weight, bias, eps)
        return out, mean.squeeze(-1), rstd.squeeze(-1)
    wide = wide_dtype(x, scale, shift)
    if x.numel() > _BLOCK and x.dtype != wide:  # else there are no intermediate results but n
        none = (None, None, None)
        out, _, mean, rstd, *_ = dual_forward(x, scale, shift, *none, eps=eps, centred=centred, unit=unit, dtype=dtype)
        return out, mean, rstd
    n, _, mean, rstd = _standardize(x.to(wide).contiguous(), eps, centred)
    total = _Sum(None if shift is None else shift.to(wide))
    total.add(n, None if scale is None else factor(scale, unit).to(wide))  # (3)
    mean = rstd.new_empty((len(x), 0)) if mean is None else mean.squeeze(-1)
    return total.total.to(dtype), mean, rstd.squeeze(-1)


def dual_forward(
    x: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None,
    *, eps: float, centred: bool, unit: bool, dtype: torch.dtype,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return out ``[G, M, D]`` and t_out ``[K, G, M, D]`` in dtype, mean, rstd ``[G, M]`` and their tangents.

    A mean is ``[..., G, 0]`` if the norm does not centre. The results of tangents are None if there are none.
    """
    wide = wide_dtype(x, scale, shift)
    num = next((len(t) for t in (tx, t_scale, t_shift) if t is not None), 0)
    row, no_row = (*x.shape[:2], 1), (*x.shape[:2], 0)
    kinds = ((x.shape, dtype), (row if centred else no_row, wide), (row, wide))
    results = [_Result(x, *kind) for kind in kinds]
    t_results = [[_Result(x, *kind) for _ in range(num)] for kind in kinds]
    for block in _blocks(x.shape):
        state = _standardize(block.wide(x, wide).contiguous(), eps, centred)
        s = _factor(block, scale, unit, wide)
        total = _Sum(block.wide(shift, wide))
        total.add(state.n, s)  # (3)
        for result, part in zip(results, (total.total, state.mean, state.rstd)):
            result.put(block, part)
        for k in range(num):
            t, a, b = (None if t is None else block.wide(t[k], wide) for t in (tx, t_scale, t_shift))
            total, t_mean, t_rstd = _Sum(b), None, None  # (4)
            if a is not None:
                total.add(state.n, a)
            if t is not None:
                u, t_mean, dot = state.jacobian_and_means(t)
                t_rstd = dot.mul_(state.rstd).mul_(state.rstd).neg_()
                total.add(u, s)
            for result, part in zip(t_results, (total.total, t_mean, t_rstd)):
                result[k].put(block, part)
    out, *statistics = (y.get() for y in results)
    t_out, *t_statistics = (_stack([y.get() for y in ys]) if ys else None for ys in t_results)
    return out, t_out, *(None if y is None else y.flatten(-2) for y in (*statistics, *t_statistics))


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
    if len(g) == 1 and x.numel() <= _BLOCK:
        return _small_backward(g[0], x, scale, shift, mean, rstd, centred, unit, wants)
    grads = _Gradients((None, None, None, x, scale, shift), (False, False, False, *wants), x, len(g))
    _accumulate(grads, None, g, x, scale, None, None, mean, rstd, None, centred, unit)
    return grads.get()[3:]


def dual_backward(
    g: Tensor | None, h: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None,
    tx: Tensor | None, t_scale: Tensor | None, t_shift: Tensor | None, mean: Tensor, rstd: Tensor, t_rstd: Tensor,
    *, centred: bool, unit: bool, wants: Wants, t_wants: Wants,
) -> tuple[Gradients, Gradients]:  # fmt: skip
    """Return the gradients of x, scale and shift, then of their tangents; None for those that are not wanted."""
    grads = _Gradients((x, scale, shift, tx, t_scale, t_shift), (*wants, *t_wants), x, len(h))
    _accumulate(grads, g, h, x, scale, tx, t_scale, mean, rstd, t_rstd, centred, unit)
    results = grads.get()
    return results[:3], results[3:]


def _takes_weights(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> bool:
    """Return True if PyTorch's fused norm takes scale and shift as weights: one row a group, in the wide dtype."""
    if any(y is not None and y.shape[1] != 1 for y in (scale, shift)):
        return False
    wide = wide_dtype(x, scale, shift)
    return x.dtype == wide or (x.device.type == "cpu" and wide == torch.float32)


def _weights(x: Tensor, scale: Tensor | None, unit: bool) -> Tensor:
    """Return s of each group, ``[G, D]`` in the wide dtype."""
    wide, shape = wide_dtype(x, scale), (x.shape[0], x.shape[-1])
    return x.new_ones(shape, dtype=wide) if scale is None else factor(scale, unit).to(wide).view(shape)


def _fused_backward(
    g: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor, unit: bool,
    wants: Wants,
) -> Gradients:  # fmt: skip
    """Compute :func:`backward` with one fused call a group, which returns the gradients of its weights too."""
    rows = x.shape[-1:]
    weights, mean, rstd = _weights(x, scale, unit), _columns(mean), _columns(rstd)
    if len(x) == 1:
        weight = weights[0]
        each = [native_layer_norm_backward(g_k, x, rows, mean, rstd, weight, weight, wants) for g_k in g]
    else:
        each = [
            native_layer_norm_backward(*args, weight, weight, wants)
            for g_k in g
            for *args, weight in zip(g_k, x, [rows] * len(x), mean, rstd, weights)
        ]
    grads: list[Tensor | None] = []
    for y, parts in zip((x, scale, shift), zip(*each)):
        if y is None or parts[0] is None:
            grads.append(None)
        else:
            whole = parts[0] if len(parts) == 1 else torch.stack(parts)
            grads.append(whole.view(len(g), *y.shape).to(y.dtype))
    return tuple(grads)  # type: ignore[return-value]


def _small_backward(
    g: Tensor, x: Tensor, scale: Tensor | None, shift: Tensor | None, mean: Tensor, rstd: Tensor, centred: bool,
    unit: bool, wants: Wants,
) -> Gradients:  # fmt: skip
    """Compute :func:`backward` for one cotangent ``[G, M, D]``, without blocks."""
    wide = rstd.dtype
    g = g.to(wide)
    state = _restandardize(x.to(wide).contiguous(), _columns(mean) if centred else None, _columns(rstd))
    s = None if scale is None else factor(scale, unit).to(wide)
    dx = state.jacobian_times(g if s is None else g * s) if wants[0] else None
    dscale, dshift = g * state.n if wants[1] else None, g if wants[2] else None
    grads = []
    for y, part in ((x, dx), (scale, dscale), (shift, dshift)):
        if y is None or part is None:
            grads.append(None)
        else:
            part = part if y.shape == x.shape else part.sum(1, keepdim=True)
            grads.append(part.to(y.dtype).contiguous().unsqueeze(0))
    return tuple(grads)


class _Block:
    """Some groups and tokens of tensors ``[..., G, M, D]``, or all of them."""

    def __init__(self, groups: slice | None = None, tokens: slice | None = None) -> None:
        self._groups, self._tokens = groups, tokens
        self.is_whole = groups is None

    def of(self, y: Tensor) -> Tensor:
        """Return this block of y, or the row that its tokens share."""
        if self.is_whole:
            return y
        return y[..., self._groups, self._tokens if y.shape[-2] > 1 else slice(None), :]

    def wide(self, y: Tensor | None, dtype: torch.dtype) -> Any:
        return None if y is None else self.of(y).to(dtype)


def _blocks(shape: torch.Size) -> Iterator[_Block]:
    G, M, D = shape
    if shape.numel() <= _BLOCK:
        yield _Block()
        return
    tokens = min(M, max(1, _BLOCK // D))
    groups = max(1, _BLOCK // (M * D))
    for i in range(0, G, groups):
        for j in range(0, M, tokens):
            yield _Block(slice(i, i + groups), slice(j, j + tokens))


class _Result:
    """A tensor that is filled block by block; what is put for the whole becomes the tensor itself.

    is_sum: what is put is summed over its tokens.
    """

    def __init__(self, x: Tensor, shape: Sequence[int], dtype: torch.dtype, is_sum: bool = False) -> None:
        self._x, self._shape, self._dtype, self._is_sum = x, shape, dtype, is_sum
        self._value: Tensor | None = None

    def put(self, block: _Block, part: Tensor | None) -> None:
        if part is None:
            return
        if self._is_sum:
            part = part.sum(-2, keepdim=True)
        if block.is_whole:
            self._value = part
        elif self._is_sum:
            if self._value is None:
                self._value = self._x.new_zeros(self._shape, dtype=part.dtype)
            block.of(self._value).add_(part)
        else:
            if self._value is None:
                self._value = self._x.new_empty(self._shape, dtype=self._dtype)
            block.of(self._value).copy_(part)

    def get(self) -> Tensor:
        """Return the tensor, zeros if nothing was put."""
        if self._value is None:
            return self._x.new_zeros(self._shape, dtype=self._dtype)
        return self._value.to(self._dtype).expand(self._shape).contiguous()


def _stack(ys: Sequence[Tensor]) -> Tensor:
    return ys[0].unsqueeze(0) if len(ys) == 1 else torch.stack(ys)


class _Sum:
    """A sum of products, in place once it has memory of its own."""

    def __init__(self, start: Tensor | None = None) -> None:
        self.total: Any = start
        self._is_own = False

    def add(self, a: Tensor, b: Tensor | None = None) -> None:
        if self.total is None:
            self.total, self._is_own = (a, False) if b is None else (a * b, True)
        elif self._is_own:
            self.total = self.total.add_(a) if b is None else self.total.addcmul_(a, b)
        else:
            self.total, self._is_own = self.total + a if b is None else torch.addcmul(self.total, a, b), True


class _Standardized(NamedTuple):
    """n and what its Jacobian needs, of a block in a wide dtype; mean is None if the norm does not centre."""

    n: Tensor
    x: Tensor
    mean: Tensor | None  # [..., 1]
    rstd: Tensor  # [..., 1]

    def jacobian_times(self, v: Tensor) -> Tensor:
        """Return J v of (2), a new tensor."""
        if self.mean is None:
            return self.jacobian_and_means(v)[0]
        args = v, self.x, v.shape[-1:], self.mean, self.rstd
        return native_layer_norm_backward(*args, None, None, (True, False, False))[0]  # type: ignore[return-value]

    def jacobian_and_means(self, v: Tensor) -> tuple[Tensor, Any, Tensor]:
        """Return J v, mean v and mean(v ∘ n), new tensors; mean v is None if the norm does not centre."""
        D = v.shape[-1]
        norm = torch.full_like(self.rstd, math.sqrt(D)).reshape(-1, 1)
        # the gradient of the weight norm a w/‖w‖ in w and in a, at w = n, with √D in place of ‖n‖ and a = √D rstd
        dv, dot = weight_norm_backward(v.reshape(-1, D), self.n.reshape(-1, D), self.rstd.reshape(-1, 1) * norm, norm)
        dv, dot = dv.view(v.shape), dot.view(self.rstd.shape).div_(math.sqrt(D))
        if self.mean is None:
            return dv, None, dot
        mean = v.mean(-1, keepdim=True)
        return dv.sub_(mean * self.rstd), mean, dot


def _standardize(x: Tensor, eps: float, centred: bool) -> _Standardized:
    """Return (1)."""
    D = x.shape[-1]
    if centred:  # with weights, PyTorch's kernel runs about twice as fast as without
        n, mean, rstd = native_layer_norm(x, (D,), x.new_ones(D), x.new_zeros(D), eps)
        return _Standardized(n, x, mean, rstd)
    root = torch.linalg.vector_norm(x, dim=-1, keepdim=True).div_(math.sqrt(D))
    return _restandardize(x, None, root.square_().add_(eps).rsqrt_())


def _restandardize(x: Tensor, mean: Tensor | None, rstd: Tensor) -> _Standardized:
    """Return (1) from the statistics."""
    n = x * rstd if mean is None else (x - mean).mul_(rstd)
    return _Standardized(n, x, mean, rstd)


def _columns(y: Tensor) -> Tensor:
    """Return statistics as ``[G, M, 1]``, contiguous: PyTorch's kernel ignores their strides (2.13)."""
    return y.contiguous().unsqueeze(-1)


def _factor(block: _Block, scale: Tensor | None, unit: bool, wide: torch.dtype) -> Any:
    return None if scale is None else factor(block.of(scale), unit).to(wide)


_X, _SCALE, _SHIFT, _TX, _T_SCALE, _T_SHIFT = range(6)


class _Gradients:
    """The gradients of x, scale and shift and of their tangents; None if not wanted."""

    def __init__(self, likes: Sequence[Tensor | None], wanted: Wants, x: Tensor, num: int) -> None:
        self._results: list[Any] = []
        for i, (y, is_wanted) in enumerate(zip(likes, wanted)):
            if y is None or not is_wanted:
                self._results.append(None)
                continue
            kind = x, y.shape[-3:], y.dtype, y.shape[-2] != x.shape[-2]
            self._results.append([_Result(*kind) for _ in range(num)] if i >= 3 else _Result(*kind))

    def wants(self, *which: int) -> bool:
        return any(self._results[i] is not None for i in which)

    def put(self, which: int, block: _Block, part: Tensor | None, k: int | None = None) -> None:
        result = self._results[which]
        (result if k is None else result[k]).put(block, part)

    def get(self) -> tuple[Any, ...]:
        return tuple(
            None if y is None else _stack([z.get() for z in y]) if isinstance(y, list) else y.get()
            for y in self._results
        )


def _accumulate(
    grads: _Gradients, g: Tensor | None, h: Tensor, x: Tensor, scale: Tensor | None, tx: Tensor | None,
    t_scale: Tensor | None, mean: Tensor, rstd: Tensor, t_rstd: Tensor | None, centred: bool,
    unit: bool,
) -> None:  # fmt: skip
    """Compute (5) to (9), as far as they are wanted."""
    wide, mean, rstd = rstd.dtype, _columns(mean), _columns(rstd)
    for block in _blocks(x.shape):
        own_mean = block.of(mean) if centred else None
        state = _restandardize(block.wide(x, wide).contiguous(), own_mean, block.of(rstd))
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
                dt, _, c_h = state.jacobian_and_means(H)
                V.add(t, c_h.mul_(r).neg_())  # (6)
                V.add(H, block.of(t_rstd[k].unsqueeze(-1)) / r)
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
            dx = None if V.total is None else state.jacobian_times(V.total)
            grads.put(_X, block, dx if f.total is None else dx.addcmul_(n, f.total * r, value=-1))  # (8)
        if grads.wants(_SCALE):
            grads.put(_SCALE, block, of_scale.total)  # (9)
