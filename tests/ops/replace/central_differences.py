"""Judge the derivatives of a function by central differences in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp, vmap

Function = Callable[..., Any]
RIGHT, WRONG, RAISES = "right", "wrong", "raises"
STEP, TOLERANCE = 1e-5, 1e-5


class Point:
    """Inputs, tangents, cotangents and a direction, at which a function is differentiated."""

    def __init__(self, function: Function, inputs: Sequence[Tensor]) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._function, self.x = function, tuple(inputs)
        self.t = self._draw(self.x)
        self.d = self._draw((*self.x, *self.t))  # of everything: an error in any one gradient shows
        self.w = self._draw(self.f(*self.x))

    def f(self, *x: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(0)  # dropout draws the same at every evaluation
        out = self._function(*x)
        return tuple(out) if isinstance(out, (tuple, list)) else (out,)

    def _draw(self, xs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(torch.randn(x.shape, dtype=x.dtype, generator=self._generator) for x in xs)

    def value(self, *x: Tensor) -> Tensor:
        return _dot(self.w, self.f(*x))

    def tangent(self, *z: Tensor) -> Tensor:
        """A nonlinear function of the tangent, of x and t."""
        n = len(self.x)
        tangents = jvp(self.f, z[:n], z[n:])[1]
        return _dot(self.w, tangents) + 0.5 * _dot(tangents, tangents)

    def dual_tangent(self, *z: Tensor) -> Tensor:
        with forward_ad.dual_level():
            n = len(self.x)
            duals = self.f(*(forward_ad.make_dual(a, b) for a, b in zip(z[:n], z[n:])))
            tangents = [forward_ad.unpack_dual(y).tangent for y in duals]
            return _dot(self.w, tangents) + 0.5 * _dot(tangents, tangents)

    def slope(self, *x: Tensor) -> Tensor:
        """The derivative in the direction t, in reverse mode."""
        return _dot(grad(self.value, tuple(range(len(x))))(*x), self.t)

    def slopes(self, *x: Tensor) -> Tensor:
        """The derivative in the direction t of two combinations of the results, by their VJPs one by one."""
        pull = vjp(self.f, *x)[1]
        return _dot(pull(self.w), self.t) + _dot(pull(tuple(w.cos() for w in self.w)), [t.sin() for t in self.t])

    def mapped_slopes(self, *x: Tensor) -> Tensor:
        """The same with both VJPs under one vmap."""
        grads = vmap(vjp(self.f, *x)[1], randomness="same")(tuple(torch.stack([w, w.cos()]) for w in self.w))
        return _dot(grads, [torch.stack([t, t.sin()]) for t in self.t])


def _dot(xs: Sequence[Any], ys: Sequence[Any]) -> Any:
    return sum((x * y).sum() for x, y in zip(xs, ys) if x is not None and y is not None)


def _along(function: Function, x: Sequence[Tensor], direction: Sequence[Tensor]) -> Tensor:
    def at(step: float) -> Tensor:
        return function(*(a + step * b for a, b in zip(x, direction)))

    return (at(STEP) - at(-STEP)) / (2 * STEP)


def _tangent(p: Point) -> tuple[Any, Any]:
    return _dot(p.w, jvp(p.f, p.x, p.t)[1]), _along(p.value, p.x, p.t)


def _gradient(p: Point) -> tuple[Any, Any]:
    return p.slope(*p.x), _along(p.value, p.x, p.t)


def _gradient_of_tangent(p: Point) -> tuple[Any, Any]:
    z = (*p.x, *p.t)
    return _dot(grad(p.tangent, tuple(range(len(z))))(*z), p.d), _along(p.tangent, z, p.d)


def _gradient_of_dual_tangent(p: Point) -> tuple[Any, Any]:
    z = tuple(x.clone().requires_grad_() for x in (*p.x, *p.t))
    grads = torch.autograd.grad(p.dual_tangent(*z), z, allow_unused=True)
    return _dot(grads, p.d), _along(p.tangent, (*p.x, *p.t), p.d)


def _tangent_of_gradient(p: Point) -> tuple[Any, Any]:
    grads = jvp(grad(p.value, tuple(range(len(p.x)))), p.x, p.d[: len(p.x)])[1]
    return _dot(grads, p.t), _along(p.slope, p.x, p.d[: len(p.x)])


def _gradient_of_gradient(p: Point) -> tuple[Any, Any]:
    return _dot(grad(p.slope, tuple(range(len(p.x))))(*p.x), p.d), _along(p.slope, p.x, p.d[: len(p.x)])


def _gradient_of_mapped_vjps(p: Point) -> tuple[Any, Any]:
    grads = grad(p.mapped_slopes, tuple(range(len(p.x))))(*p.x)
    return _dot(grads, p.d), _along(p.slopes, p.x, p.d[: len(p.x)])


def _tangent_of_mapped_vjps(p: Point) -> tuple[Any, Any]:
    d = p.d[: len(p.x)]
    return jvp(p.mapped_slopes, p.x, d)[1], _along(p.slopes, p.x, d)


MODES: dict[str, Callable[[Point], tuple[Any, Any]]] = {
    "gradient": _gradient,
    "tangent": _tangent,
    "gradient of the tangent": _gradient_of_tangent,
    "the same, dual numbers": _gradient_of_dual_tangent,
    "tangent of the gradient": _tangent_of_gradient,
    "gradient of the gradient": _gradient_of_gradient,
    "gradient of mapped VJPs": _gradient_of_mapped_vjps,
    "tangent of mapped VJPs": _tangent_of_mapped_vjps,
}


def judge(function: Function, inputs: Sequence[Tensor], mode: str) -> str:
    """Return RIGHT, WRONG or RAISES."""
    point = Point(function, inputs)
    try:
        actual, expected = MODES[mode](point)
    except (RuntimeError, NotImplementedError, TypeError):
        return RAISES
    error = abs(float(actual) - float(expected))
    return RIGHT if error <= TOLERANCE * max(1.0, abs(float(expected))) else WRONG  # NaN is wrong
