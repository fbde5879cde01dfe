"""The modes of differentiation, for the tests of every op: each computes something of a function of several tensors."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

Function = Callable[..., Tensor]
Mode = Callable[[Function, "Problem"], Any]
MODES: dict[str, Mode] = {}


gradients = functools.partial(torch.autograd.grad, materialize_grads=True)  # zero for an argument that is not used


@dataclass
class Problem:
    """The point, tangents and weights at which a function is differentiated.

    x: tensors of two or more dimensions; t: a tangent of each; ts: K tangents of each; xs: K points, each
    ``[K, ...]``; w, ws: weights of the result and of K results in a scalar loss; square: that of the result's square.
    """

    x: Sequence[Tensor]
    t: Sequence[Tensor]
    ts: Sequence[Tensor]
    xs: Sequence[Tensor]
    w: Tensor
    ws: Tensor
    square: float = 1.0

    @property
    def every(self) -> tuple[int, ...]:
        """The positions of x."""
        return tuple(range(len(self.x)))

    @property
    def everything(self) -> tuple[int, ...]:
        """The positions of x and then t."""
        return tuple(range(2 * len(self.x)))

    def halves(self, tensors: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Split primals and tangents."""
        return tuple(tensors[: len(self.x)]), tuple(tensors[len(self.x) :])

    def at(self, positions: Sequence[int], f: Function) -> "tuple[Function, Problem]":
        """Return f as a function of some of its inputs, the others held fixed, and the problem of these."""
        x = list(self.x)

        def of_some(*some: Tensor) -> Tensor:
            every = x.copy()
            for i, y in zip(positions, some, strict=True):
                every[i] = y
            return f(*every)

        def pick(tensors: Sequence[Tensor]) -> list[Tensor]:
            return [tensors[i] for i in positions]

        picked = {name: pick(getattr(self, name)) for name in ("x", "t", "ts", "xs")}
        return of_some, replace(self, **picked)

    def loss(self, f: Function) -> Callable[..., Tensor]:
        return lambda *x: (f(*x) * self.w).sum() + self.square * f(*x).square().sum()


def mode(function: Mode) -> Mode:
    MODES[function.__name__] = function
    return function


@mode
def forward(f: Function, p: Problem) -> Any:
    return f(*p.x)


@mode
def forward_mode(f: Function, p: Problem) -> Any:
    return jvp(f, tuple(p.x), tuple(p.t))


@mode
def reverse_mode(f: Function, p: Problem) -> Any:
    return grad(p.loss(f), p.every)(*p.x)


def _tangent_loss(f: Function, p: Problem) -> Callable[..., Tensor]:
    def loss(*x: Tensor) -> Tensor:
        out, t_out = jvp(f, *p.halves(x))
        return (out * p.w).sum() + t_out.square().sum()

    return loss


@mode
def reverse_over_forward(f: Function, p: Problem) -> Any:
    return grad(_tangent_loss(f, p), p.everything)(*p.x, *p.t)


@mode
def forward_over_reverse(f: Function, p: Problem) -> Any:
    return jvp(grad(p.loss(f), p.every), tuple(p.x), tuple(p.t))


@mode
def reverse_over_reverse(f: Function, p: Problem) -> Any:
    def directional(*x: Tensor) -> Tensor:
        return sum((g * t).sum() for g, t in zip(grad(p.loss(f), p.every)(*x), p.t))

    return grad(directional, p.every)(*p.x)


@mode
def vmap_of_jvp(f: Function, p: Problem) -> Any:
    return vmap(lambda *t: jvp(f, tuple(p.x), t))(*p.ts)


@mode
def vmap_of_jvp_of_mapped_primals(f: Function, p: Problem) -> Any:
    dims = tuple((0, None, 1)[i % 3] for i in range(len(p.x)))

    def mapped(many: Sequence[Tensor], one: Sequence[Tensor]) -> list[Tensor]:
        return [b if dim is None else a.movedim(0, dim) for a, b, dim in zip(many, one, dims)]

    return vmap(lambda *x: jvp(f, *p.halves(x)), dims * 2)(*mapped(p.xs, p.x), *mapped(p.ts, p.t))


@mode
def grad_of_vmap_of_jvp(f: Function, p: Problem) -> Any:
    def loss(*x: Tensor) -> Tensor:
        return (vmap(lambda *t: jvp(f, p.halves(x)[0], t)[1])(*p.halves(x)[1]) * p.ws).sum()

    return grad(loss, p.everything)(*p.x, *p.ts)


@mode
def vmap_of_grad_of_jvp(f: Function, p: Problem) -> Any:
    return vmap(lambda *t: grad(_tangent_loss(f, p), p.everything)(*p.x, *t))(*p.ts)


@mode
def vmap_of_vjp(f: Function, p: Problem) -> Any:
    return vmap(vjp(f, *p.x)[1])(p.ws)


@mode
def vmap_of_vmap_of_vjp(f: Function, p: Problem) -> Any:
    return vmap(vmap(vjp(f, *p.x)[1]))(torch.stack([p.ws, p.ws.cos()]))


@mode
def forward_over_vmap_of_vjp(f: Function, p: Problem) -> Any:
    return jvp(lambda *x: vmap(vjp(f, *x)[1])(p.ws), tuple(p.x), tuple(p.t))


@mode
def reverse_over_vmap_of_vjp(f: Function, p: Problem) -> Any:
    def loss(*x: Tensor) -> Tensor:
        return sum((g * t).sum() for g, t in zip(vmap(vjp(f, *x)[1])(p.ws), p.ts))

    return grad(loss, p.every)(*p.x)


@mode
def vmap_of_grad(f: Function, p: Problem) -> Any:
    return vmap(grad(p.loss(f), p.every))(*p.xs)


@mode
def grad_of_vmap(f: Function, p: Problem) -> Any:
    return grad(lambda *x: (vmap(f)(*x) * p.ws).sum(), p.every)(*p.xs)


@mode
def jvp_of_vmap(f: Function, p: Problem) -> Any:
    return jvp(vmap(f), tuple(p.xs), tuple(p.ts))


@mode
def vmap_of_one_argument(f: Function, p: Problem) -> Any:
    """Each alone, at the first axis and at the third."""
    results = []
    for i, many in enumerate(p.xs):
        for dim in (0, 2)[: max(1, many.ndim - 1)]:
            dims = tuple(dim if j == i else None for j in p.every)
            results.append(vmap(f, dims)(*p.x[:i], many.movedim(0, dim), *p.x[i + 1 :]))
    return results


@mode
def jacobian_by_columns(f: Function, p: Problem) -> Any:
    return jacfwd(f, p.every)(*p.x)


@mode
def jacobian_by_rows(f: Function, p: Problem) -> Any:
    return jacrev(f, p.every)(*p.x)


def _shifted_loss(f: Function, p: Problem) -> Callable[[Tensor], Tensor]:
    """A loss of a vector [D], through the first two arguments, or through one: its Hessian is small."""
    first, *rest = p.x

    def loss(z: Tensor) -> Tensor:
        if not rest:
            return p.loss(f)(first * (1 + z))  # a shift of every key changes nothing
        factor = z if rest[0].shape[-1] == z.shape[0] else z.sum()
        return p.loss(f)(first + z, rest[0] * factor, *rest[1:])

    return loss


@mode
def hessian_forward_over_reverse(f: Function, p: Problem) -> Any:
    return hessian(_shifted_loss(f, p))(p.w.flatten()[: p.x[0].shape[-1]])


@mode
def hessian_reverse_over_reverse(f: Function, p: Problem) -> Any:
    return jacrev(jacrev(_shifted_loss(f, p)))(p.w.flatten()[: p.x[0].shape[-1]])


@mode
def hessian_reverse_over_forward(f: Function, p: Problem) -> Any:
    return jacrev(jacfwd(_shifted_loss(f, p)))(p.w.flatten()[: p.x[0].shape[-1]])


@mode
def create_graph_and_again(f: Function, p: Problem) -> Any:
    x = [y.clone().requires_grad_() for y in p.x]
    first = gradients(p.loss(f)(*x), x, create_graph=True)
    return *first, *gradients(sum((g * t).sum() for g, t in zip(first, p.t)), x)


@mode
def dual_level_then_backward(f: Function, p: Problem) -> Any:
    leaves = [y.clone().requires_grad_() for y in (*p.x, *p.t)]
    with fwAD.dual_level():
        out, t_out = fwAD.unpack_dual(f(*map(fwAD.make_dual, *p.halves(leaves))))
    return gradients((out * p.w).sum() + t_out.square().sum(), leaves)


@mode
def dual_level_with_backward_inside(f: Function, p: Problem) -> Any:
    leaves = [y.clone().requires_grad_() for y in (*p.x, *p.t)]
    with fwAD.dual_level():
        out, t_out = fwAD.unpack_dual(f(*map(fwAD.make_dual, *p.halves(leaves))))
        grads = gradients((out * p.w).sum() + t_out.square().sum(), leaves)
        return [fwAD.unpack_dual(x).primal for x in grads]


@mode
def dual_level_without_graph(f: Function, p: Problem) -> Any:
    with fwAD.dual_level():
        return tuple(fwAD.unpack_dual(f(*map(fwAD.make_dual, p.x, p.t))))


@mode
def dual_level_tangent_of_gradient(f: Function, p: Problem) -> Any:
    with fwAD.dual_level():
        duals = [fwAD.make_dual(x.clone().requires_grad_(), t) for x, t in zip(p.x, p.t)]
        grads = gradients(p.loss(f)(*duals), duals, create_graph=True)
        return [part for x in grads for part in fwAD.unpack_dual(x)]
