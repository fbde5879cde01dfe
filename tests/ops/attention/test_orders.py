"""Every way to a second derivative that PyTorch offers, and what lies beyond: right or refused, never silently zero."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.autograd import functional
from torch.func import grad, jvp, vmap

from fastflow.ops.attention import attention, attention_jvp
from tests.compare import assert_close, math_attention, tensors

B, H, NQ, NK, D = 1, 2, 3, 4, 2


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def operands(seed: int = 0) -> tuple[Tensor, ...]:
    return tuple(draw(B, H, n, D, seed=seed + i) for i, n in enumerate((NQ, NK, NK)))


def leaves(seed: int = 0) -> list[Tensor]:
    return [y.requires_grad_() for y in operands(seed)]


def loss(f: Callable[..., Tensor], *x: Tensor) -> Tensor:
    return f(*x).square().sum()


BOOLEANS = [False, True]
FLAGS = [{"create_graph": a, "strict": b} for a in BOOLEANS for b in BOOLEANS]
VECTORIZED = [
    *({**flags, "vectorize": False} for flags in FLAGS),
    *({"create_graph": a, "vectorize": True} for a in BOOLEANS),
]
CALLS: dict[str, Callable[[Any], Any]] = {
    "jvp": lambda f, **o: functional.jvp(f, operands(), operands(5), **o),
    "vjp": lambda f, **o: functional.vjp(f, operands(), draw(B, H, NQ, D, seed=9), **o),
    "hvp": lambda f, **o: functional.hvp(functools.partial(loss, f), operands(), operands(5), **o),
    "vhp": lambda f, **o: functional.vhp(functools.partial(loss, f), operands(), operands(5), **o),
    "jacobian": lambda f, **o: functional.jacobian(f, operands(), **o),
    "hessian": lambda f, **o: functional.hessian(functools.partial(loss, f), operands(), **o),
}


def cases() -> list[Any]:
    plain = [(name, flags) for name in ("jvp", "vjp", "hvp", "vhp") for flags in FLAGS]
    reverse = [(name, flags) for name in ("jacobian", "hessian") for flags in VECTORIZED]
    forward = [("jacobian", {"strategy": "forward-mode"}), ("hessian", {"outer_jacobian_strategy": "forward-mode"})]
    return [*plain, *reverse, *((name, {**flags, "vectorize": True}) for name, flags in forward)]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(("name", "flags"), cases(), ids=str)
def test_autograd_functional(name: str, flags: dict[str, Any], backend: str) -> None:
    got = tensors(CALLS[name](functools.partial(attention, backend=backend), **flags))
    for a, e in zip(got, tensors(CALLS[name](math_attention, **flags)), strict=True):
        assert_close(a, e, 1e-10)
        if "create_graph" in flags:
            assert a.requires_grad == e.requires_grad


@pytest.mark.parametrize("name", ["hvp", "vhp", "hessian"])
def test_what_autograd_functional_returns_has_no_third_derivative(name: str) -> None:
    x = draw(B, H, NQ, D).requires_grad_()
    _, k, v = operands()
    scalar = lambda q: loss(attention, q, k, v)  # noqa: E731
    calls = {
        "hvp": lambda: functional.hvp(scalar, x, draw(B, H, NQ, D, seed=5), create_graph=True)[1],
        "vhp": lambda: functional.vhp(scalar, x, draw(B, H, NQ, D, seed=5), create_graph=True)[1],
        "hessian": lambda: functional.hessian(scalar, x, create_graph=True, vectorize=True),
    }
    with pytest.raises(NotImplementedError, match="no third derivative"):
        torch.autograd.grad(calls[name]().square().sum(), x)
    with pytest.raises(NotImplementedError, match="no third derivative"):
        calls[name]().square().sum().backward()


def test_the_direction_of_a_hessian_vector_product_has_a_derivative() -> None:
    """Linear in the direction, and symmetric: the derivative is again a Hessian-vector product, many times over."""
    directions = leaves(5)
    results = []
    for f in (attention, math_attention):
        x = leaves()
        first = torch.autograd.grad(loss(f, *x), x, create_graph=True)
        second = torch.autograd.grad(first, x, directions, create_graph=True)
        third = torch.autograd.grad(second, directions, operands(9), create_graph=True)
        again = torch.autograd.grad(sum(y.square().sum() for y in second), directions)
        results.append([*second, *third, *again])
    for a, e in zip(*results, strict=True):
        assert_close(a, e, 1e-10)


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("given", [(1, 1, 1), (1, 0, 0), (0, 1, 1)])
def test_the_gradient_through_a_tangent_is_linear_in_what_it_may_be(given: tuple[int, ...], num: int) -> None:
    """The gradients of tangents and primals, differentiated in the cotangents and the tangents."""
    t = [draw(num, *y.shape, seed=i).requires_grad_() if g else None for i, (y, g) in enumerate(zip(operands(), given))]
    present = [y for y in t if y is not None]
    g, h = draw(B, H, NQ, D, seed=7).requires_grad_(), draw(num, B, H, NQ, D, seed=8).requires_grad_()
    results = []
    for f in (attention, math_attention):
        x = leaves()
        if f is attention:
            out, t_out = attention_jvp(*x, *t)
        else:
            full = [torch.zeros(num, *y.shape).double() if ty is None else ty for y, ty in zip(x, t)]
            out, t_out = vmap(lambda *ts: jvp(math_attention, tuple(x), ts), out_dims=(None, 0))(*full)  # noqa: B023
        first = torch.autograd.grad((out, t_out), (*x, *present), (g, h), create_graph=True)
        of_x, of_t = first[:3], first[3:]
        weights = [draw(*y.shape, seed=20 + i) for i, y in enumerate(first)]
        wanted = [
            torch.autograd.grad(of_x, (g, *present), weights[:3], retain_graph=True),
            torch.autograd.grad(of_t, (h, *x), weights[3:], retain_graph=True, allow_unused=True),
        ]
        results.append([y for grads in wanted for y in grads])
        if f is attention:
            for refused in (h, x[0]):  # D²f[c, t] and a third derivative
                with pytest.raises(NotImplementedError, match="no third derivative"):
                    torch.autograd.grad(of_x, refused, weights[:3], retain_graph=True)
    for a, e in zip(*results, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


def test_a_tangent_of_the_gradient_through_a_tangent_in_its_cotangents() -> None:
    x, t = leaves(), operands(5)
    weight, t_weight = draw(B, H, NQ, D, seed=8), draw(B, H, NQ, D, seed=9)

    def gradients(f: Any, w: Tensor) -> tuple[Tensor, ...]:
        return grad(lambda *y: (jvp(f, y, t)[1] * w).sum(), (0, 1, 2))(*x)

    for a, e in zip(
        *(jvp(functools.partial(gradients, f), (weight,), (t_weight,))[1] for f in (attention, math_attention))
    ):
        assert_close(a, e, 1e-10)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_batched_gradients_keep_their_graph(backend: str) -> None:
    cotangents = draw(3, B, H, NQ, D, seed=4)
    results = []
    for f in (functools.partial(attention, backend=backend), math_attention):
        x, t = leaves(), leaves(5)
        out, t_out = jvp(f, tuple(x), tuple(t))
        plain = torch.autograd.grad(f(*x), x, cotangents, is_grads_batched=True, create_graph=True)
        joint = torch.autograd.grad(
            (out, t_out), (*x, *t), (cotangents, cotangents.cos()), is_grads_batched=True, create_graph=True
        )
        tangents = torch.autograd.grad(
            t_out, t, cotangents, is_grads_batched=True, create_graph=True, retain_graph=True
        )
        second = torch.autograd.grad(sum(y.square().sum() for y in plain), x)
        once = torch.autograd.grad(f(*x), x, cotangents[0], create_graph=True)
        directions = [draw(2, *y.shape, seed=6) for y in x]
        twice = torch.autograd.grad(once, x, directions, is_grads_batched=True, create_graph=True)
        in_x = torch.autograd.grad(sum(y.square().sum() for y in tangents), x)
        results.append([*plain, *joint, *second, *twice, *in_x])
        assert all(y.requires_grad for y in (*plain, *joint, *twice))
    for a, e in zip(*results, strict=True):
        assert_close(a, e, 1e-10)


def test_batched_gradients_of_third_order_are_refused() -> None:
    x = leaves()
    first = torch.autograd.grad(loss(attention, *x), x, create_graph=True)
    directions = [draw(2, *y.shape, seed=6) for y in x]
    second = torch.autograd.grad(first, x, directions, is_grads_batched=True, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third derivative"):
        torch.autograd.grad(second[0].square().sum(), x[0])


WEIGHT, DIRECTION = draw(B, H, NQ, D, seed=3), draw(B, H, NQ, D, seed=4)


def _gradient(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda q: grad(lambda q: (f(q) * WEIGHT).sum())(q)


def _tangent(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda q: jvp(f, (q,), (DIRECTION,))[1]


def _tape(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def gradient(q: Tensor) -> Tensor:
        leaf = q if q.requires_grad else q.detach().requires_grad_()
        return torch.autograd.grad((f(leaf) * WEIGHT).sum(), leaf, create_graph=True)[0]

    return gradient


def _mapped(f: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda q: vmap(f)(torch.stack([q, q.cos()])).sum(0)


STEPS = {"grad": _gradient, "jvp": _tangent, "vmap": _mapped}


@pytest.mark.parametrize("outer", STEPS)
@pytest.mark.parametrize("steps", itertools.product(("grad", "jvp"), repeat=3), ids="-".join)
def test_third_derivatives_raise(steps: tuple[str, ...], outer: str) -> None:
    """In every order of the transforms, with vmap around the first, and a fourth step around all."""
    _, k, v = operands()
    k, v = k[:, :, :NQ], v[:, :, :NQ]
    for mapped in (False, True):
        f: Callable[[Tensor], Tensor] = lambda q: attention(q, k, v)  # noqa: E731
        for i, step in enumerate(steps):
            f = STEPS[step](_mapped(f) if mapped and i == 1 else f)
        for call in (f, STEPS[outer](f)):
            with pytest.raises(
                NotImplementedError, match=r"no third derivative|forward-mode AD inside forward-mode AD"
            ):
                call(draw(B, H, NQ, D))


@pytest.mark.parametrize("inner", ["grad", "jvp", "tape"])
def test_third_derivatives_on_the_tape_raise(inner: str) -> None:
    _, k, v = operands()
    step = {**STEPS, "tape": _tape}[inner]
    for refused in (
        _tape(_tape(step(lambda q: attention(q, k, v)))),
        _tape(_gradient(step(lambda q: attention(q, k, v)))),
    ):
        with pytest.raises(NotImplementedError, match="no third derivative"):
            refused(draw(B, H, NQ, D).requires_grad_())


def test_the_tangent_of_a_weight_in_a_bare_dual_level_is_right() -> None:
    """There a third derivative is NaN; what is of second order is not."""
    x, t = leaves(), operands(5)
    weight, t_weight = draw(B, H, NQ, D, seed=8), draw(B, H, NQ, D, seed=9)
    tangent = jvp(attention, tuple(x), t)[1]
    with fwAD.dual_level():
        dual = fwAD.make_dual(weight, t_weight)
        got = [fwAD.unpack_dual(g).tangent for g in torch.autograd.grad((tangent * dual).sum(), x)]
    tangent = jvp(math_attention, tuple(x), t)[1]
    for a, e in zip(got, torch.autograd.grad(tangent, x, t_weight), strict=True):
        assert_close(a, e, 1e-10)
