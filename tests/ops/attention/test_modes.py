"""Every mode of differentiation against float64 attention spelled out in plain PyTorch."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from fastflow.ops.attention import attention
from tests.compare import DEVICE, assert_close, math_attention, tensors

TOLERANCE = 1e-10
B, H, NQ, NK, D, DV, K = 2, 4, 5, 7, 3, 2, 3
ROWS = {  # D and Dv that lead to each of the ways to serve a CPU
    "long": (D, DV),  # computed again for the backward
    "short": (5, 3),  # Nk <= D + Dv: without a mask, kept
    "native": (3, 3),  # ATen's kernel, without tangents
}

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
MODES: dict[str, Callable[[Attend, "Problem"], Any]] = {}


class Problem:
    """Primals, one tangent each, K tangents each, and the weights of a scalar loss."""

    def __init__(
        self, heads_k: int, dtype: torch.dtype = torch.float64, batch: int = B, heads: int = H, rows: str = "long"
    ) -> None:
        D, DV = ROWS[rows]
        generator = torch.Generator().manual_seed(0)

        def draw(*lead: int) -> list[Tensor]:
            shapes = ((heads, NQ, D), (heads_k, NK, D), (heads_k, NK, DV))
            return [randn(*lead, batch, *s) for s in shapes]

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, dtype=torch.float64, generator=generator).to(DEVICE, dtype)

        self.x, self.t, self.ts, self.xs = draw(), draw(), draw(K), draw(K)
        self.w, self.ws = randn(batch, heads, NQ, DV), randn(K, batch, heads, NQ, DV)

    def loss(self, f: Attend) -> Callable[..., Tensor]:
        return lambda *x: (f(*x) * self.w).sum() + f(*x).square().sum()


def mode(function: Callable[[Attend, Problem], Any]) -> Callable[[Attend, Problem], Any]:
    MODES[function.__name__] = function
    return function


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"is_causal": True},
    "gqa": {"enable_gqa": True},
    "bool": {"attn_mask": torch.rand(B, 1, NQ, NK, generator=torch.Generator().manual_seed(1)) > 0.3},
    "additive": {
        "attn_mask": torch.randn(1, H, 1, NK, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    },
    "masked_row": {"attn_mask": torch.zeros(NQ, NK, dtype=torch.float64).index_fill_(0, torch.tensor([1]), -torch.inf)},
}


@mode
def forward(f: Attend, p: Problem) -> Any:
    return f(*p.x)


@mode
def forward_mode(f: Attend, p: Problem) -> Any:
    return jvp(f, tuple(p.x), tuple(p.t))


@mode
def reverse_mode(f: Attend, p: Problem) -> Any:
    return grad(p.loss(f), (0, 1, 2))(*p.x)


def _tangent_loss(f: Attend, p: Problem) -> Callable[..., Tensor]:
    def loss(*x: Tensor) -> Tensor:
        out, t_out = jvp(f, x[:3], x[3:])
        return (out * p.w).sum() + t_out.square().sum()

    return loss


@mode
def reverse_over_forward(f: Attend, p: Problem) -> Any:
    return grad(_tangent_loss(f, p), tuple(range(6)))(*p.x, *p.t)


@mode
def forward_over_reverse(f: Attend, p: Problem) -> Any:
    return jvp(grad(p.loss(f), (0, 1, 2)), tuple(p.x), tuple(p.t))


@mode
def reverse_over_reverse(f: Attend, p: Problem) -> Any:
    def directional(*x: Tensor) -> Tensor:
        return sum((g * t).sum() for g, t in zip(grad(p.loss(f), (0, 1, 2))(*x), p.t))

    return grad(directional, (0, 1, 2))(*p.x)


@mode
def vmap_of_jvp(f: Attend, p: Problem) -> Any:
    return vmap(lambda *t: jvp(f, tuple(p.x), t))(*p.ts)


@mode
def vmap_of_jvp_of_mapped_primals(f: Attend, p: Problem) -> Any:
    return vmap(lambda *x: jvp(f, x[:3], x[3:]), (0, None, 1, 0, None, 1))(
        p.xs[0], p.x[1], p.xs[2].movedim(0, 1), p.ts[0], p.t[1], p.ts[2].movedim(0, 1)
    )


@mode
def grad_of_vmap_of_jvp(f: Attend, p: Problem) -> Any:
    def loss(*x: Tensor) -> Tensor:
        return (vmap(lambda *t: jvp(f, x[:3], t)[1])(*x[3:]) * p.ws).sum()

    return grad(loss, tuple(range(6)))(*p.x, *p.ts)


@mode
def vmap_of_grad_of_jvp(f: Attend, p: Problem) -> Any:
    return vmap(lambda *t: grad(_tangent_loss(f, p), tuple(range(6)))(*p.x, *t))(*p.ts)


@mode
def vmap_of_vjp(f: Attend, p: Problem) -> Any:
    return vmap(vjp(f, *p.x)[1])(p.ws)


@mode
def vmap_of_grad(f: Attend, p: Problem) -> Any:
    return vmap(grad(p.loss(f), (0, 1, 2)))(*p.xs)


@mode
def grad_of_vmap(f: Attend, p: Problem) -> Any:
    return grad(lambda *x: (vmap(f)(*x) * p.ws).sum(), (0, 1, 2))(*p.xs)


@mode
def jvp_of_vmap(f: Attend, p: Problem) -> Any:
    return jvp(vmap(f), tuple(p.xs), tuple(p.ts))


@mode
def vmap_of_one_argument(f: Attend, p: Problem) -> Any:
    return vmap(f, (0, None, None))(p.xs[0], *p.x[1:]), vmap(f, (None, 2, None))(p.x[0], p.xs[1].movedim(0, 2), p.x[2])


@mode
def jacobian_by_columns(f: Attend, p: Problem) -> Any:
    return jacfwd(f, (0, 1, 2))(*p.x)


@mode
def jacobian_by_rows(f: Attend, p: Problem) -> Any:
    return jacrev(f, (0, 1, 2))(*p.x)


def _shifted_loss(f: Attend, p: Problem) -> Callable[[Tensor], Tensor]:
    """A loss of a vector [D], through query and key: hessians of it are small."""
    return lambda z: p.loss(f)(p.x[0] + z, p.x[1] * z, p.x[2])


@mode
def hessian_forward_over_reverse(f: Attend, p: Problem) -> Any:
    return hessian(_shifted_loss(f, p))(p.w.flatten()[: p.x[0].shape[-1]])


@mode
def hessian_reverse_over_reverse(f: Attend, p: Problem) -> Any:
    return jacrev(jacrev(_shifted_loss(f, p)))(p.w.flatten()[: p.x[0].shape[-1]])


@mode
def hessian_reverse_over_forward(f: Attend, p: Problem) -> Any:
    return jacrev(jacfwd(_shifted_loss(f, p)))(p.w.flatten()[: p.x[0].shape[-1]])


@mode
def create_graph_and_again(f: Attend, p: Problem) -> Any:
    x = [y.clone().requires_grad_() for y in p.x]
    first = torch.autograd.grad(p.loss(f)(*x), x, create_graph=True)
    return *first, *torch.autograd.grad(sum((g * t).sum() for g, t in zip(first, p.t)), x)


@mode
def dual_level_then_backward(f: Attend, p: Problem) -> Any:
    leaves = [y.clone().requires_grad_() for y in (*p.x, *p.t)]
    with fwAD.dual_level():
        out, t_out = fwAD.unpack_dual(f(*map(fwAD.make_dual, leaves[:3], leaves[3:])))
    return torch.autograd.grad((out * p.w).sum() + t_out.square().sum(), leaves)


@mode
def dual_level_with_backward_inside(f: Attend, p: Problem) -> Any:
    leaves = [y.clone().requires_grad_() for y in (*p.x, *p.t)]
    with fwAD.dual_level():
        out, t_out = fwAD.unpack_dual(f(*map(fwAD.make_dual, leaves[:3], leaves[3:])))
        grads = torch.autograd.grad((out * p.w).sum() + t_out.square().sum(), leaves)
        return [fwAD.unpack_dual(x).primal for x in grads]


@mode
def dual_level_without_graph(f: Attend, p: Problem) -> Any:
    with fwAD.dual_level():
        return tuple(fwAD.unpack_dual(f(*map(fwAD.make_dual, p.x, p.t))))


@mode
def dual_level_tangent_of_gradient(f: Attend, p: Problem) -> Any:
    with fwAD.dual_level():
        duals = [fwAD.make_dual(x.clone().requires_grad_(), t) for x, t in zip(p.x, p.t)]
        grads = torch.autograd.grad(p.loss(f)(*duals), duals, create_graph=True)
        return [part for x in grads for part in fwAD.unpack_dual(x)]


def _check(actual: Any, expected: Any, name: str, tolerance: float = TOLERANCE) -> None:
    actual, expected = tensors(actual), tensors(expected)
    assert len(actual) == len(expected)
    for i, (x, y) in enumerate(zip(actual, expected)):
        assert_close(x, y, tolerance, f"{name}[{i}]")


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MODES)
def test_mode(name: str, case: str, rows: str) -> None:
    options = {name: x.to(DEVICE) if isinstance(x, Tensor) else x for name, x in CASES[case].items()}
    problem = Problem(heads_k=2 if case == "gqa" else H, rows=rows)
    actual = MODES[name](lambda q, k, v: attention(q, k, v, **options), problem)
    expected = MODES[name](lambda q, k, v: math_attention(q, k, v, **options), problem)
    _check(actual, expected, name)


@pytest.mark.parametrize("rows", ["long", "short"])
@pytest.mark.parametrize("name", MODES)
def test_mode_of_the_reference_alone(name: str, rows: str) -> None:
    problem = Problem(heads_k=H, rows=rows)
    actual = MODES[name](lambda q, k, v: attention(q, k, v, backend="reference"), problem)
    _check(actual, MODES[name](math_attention, problem), name)


@pytest.mark.parametrize("name", MODES)
def test_mode_of_the_kernels(name: str) -> None:
    pytest.importorskip("triton")
    problem, double = (Problem(1, dtype, batch=1, heads=1) for dtype in (torch.float32, torch.float64))
    actual = MODES[name](lambda q, k, v: attention(q, k, v, backend="triton"), problem)
    _check(actual, MODES[name](math_attention, double), name, 1e-5)
