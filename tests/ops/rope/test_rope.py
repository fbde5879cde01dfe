"""Rotary embedding in every mode against the rotation written out in PyTorch, its arguments, and its tables."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.func import grad, jvp, vmap

from fastflow import attention, rope
from fastflow.nn import rope_table
from tests.compare import DEVICE, assert_close, tensors
from tests.modes import MODES, Problem

G, H, N, D, K = 2, 2, 3, 6, 3
KERNEL_MODES = (  # each function of the op, with one and with many tangents and cotangents
    "forward_mode", "reverse_over_forward", "forward_over_reverse", "reverse_over_reverse", "vmap_of_vjp",
    "grad_of_vmap_of_jvp", "create_graph_and_again", "dual_level_then_backward",
)  # fmt: skip
TABLES = {"whole": (1, 1, N, D // 2), "partial": (N, 2), "per sample": (G, 1, N, 2)}


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE, dtype)


def table(name: str) -> tuple[Tensor, Tensor]:
    angles = draw(*TABLES[name], seed=7)
    return angles.cos(), angles.sin()


def rotate_half(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As models write it, with full-width tables."""
    width = 2 * cos.shape[-1]
    turned, rest = x[..., :width], x[..., width:]
    first, second = turned.chunk(2, -1)
    swapped = torch.cat((-second, first), -1)
    return torch.cat((turned * torch.cat((cos, cos), -1) + swapped * torch.cat((sin, sin), -1), rest), -1)


def problem(dtype: torch.dtype = torch.float64) -> Problem:
    shape = G, H, N, D
    x, t, ts, xs = (draw(*lead, *shape, seed=i, dtype=dtype) for i, lead in enumerate(((), (), (K,), (K,))))
    return Problem([x], [t], [ts], [xs], draw(*shape, seed=5, dtype=dtype), draw(K, *shape, seed=6, dtype=dtype))


def check(actual: Any, expected: Any, tolerance: float = 1e-12) -> None:
    for x, y in zip(tensors(actual), tensors(expected), strict=True):
        assert_close(x, y, tolerance)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("mode", MODES)
def test_mode(mode: str, name: str) -> None:
    turn, p = table(name), problem()
    check(MODES[mode](lambda x: rope(x, *turn), p), MODES[mode](lambda x: rotate_half(x, *turn), p))


@pytest.mark.parametrize("mode", KERNEL_MODES)
def test_mode_of_the_kernel(mode: str) -> None:
    pytest.importorskip("triton")
    turn = table("partial")
    actual = MODES[mode](lambda x: rope(x, *turn, backend="triton"), problem(torch.float32))
    check(actual, MODES[mode](lambda x: rotate_half(x, *turn), problem()), 1e-5)


@pytest.mark.parametrize("interleaved", [False, True])
def test_numerically(interleaved):
    turn, x = table("partial"), draw(1, 2, N, 5).requires_grad_()
    assert gradcheck(
        lambda x: rope(x, *turn, interleaved=interleaved), x, check_forward_ad=True, check_batched_grad=True
    )
    assert gradgradcheck(lambda x: rope(x, *turn, interleaved=interleaved).square(), x, check_fwd_over_rev=True)


def test_interleaved_pairs_are_permuted_halves():
    cos, sin = table("whole")
    x = draw(G, H, N, D)
    order = torch.arange(D).view(2, D // 2).T.flatten()  # channel of the halves at each interleaved place
    assert_close(rope(x[..., order], cos, sin, interleaved=True), rope(x, cos, sin)[..., order], 1e-15)


def test_mapped_tables():
    angles, x, t = draw(K, N, 2), draw(N, D), draw(N, D, seed=1)

    def tangent(f):
        return vmap(lambda a: jvp(lambda x: f(x, a.cos(), a.sin()), (x,), (t,))[1])(angles)

    assert_close(tangent(rope), tangent(rotate_half), 1e-14)


def test_derivatives_of_the_table_are_pytorchs():
    x, angles = draw(G, H, N, D), draw(N, 2)

    def loss(f):
        return lambda a: f(x, a.cos(), a.sin()).pow(3).sum()

    for transform in (grad, lambda f: grad(lambda a: jvp(f, (a,), (a,))[1])):
        assert_close(transform(loss(rope))(angles), transform(loss(rotate_half))(angles), 1e-13)


@pytest.mark.parametrize("of_table", ["one", "last", "all", "ones"])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3), (2, 3, 4), (0, 2)])
def test_leading_axes(lead, of_table):
    x, t = draw(*lead, N, D), draw(*lead, N, D, seed=1)
    leads = {"one": (), "last": lead[-1:], "all": lead, "ones": (1,) * len(lead)}
    turn = draw(*leads[of_table], N, 2, seed=2).cos(), draw(*leads[of_table], N, 2, seed=2).sin()
    out, t_out = jvp(lambda x: rope(x, *turn), (x,), (t,))
    assert_close(out, rotate_half(x, *turn), 1e-14)
    assert_close(t_out, rotate_half(t, *turn), 1e-14)
    assert_close(rope(x, *turn), out, 1e-15)


def test_queries_of_one_qkv_are_read_in_place():
    """Strided views of qkv ``[B, N, 3, H, D]``, in every derivative."""
    qkv, t = draw(G, N, 3, H, D), draw(G, N, 3, H, D, seed=1)
    turn = table("whole")

    def scores(f):
        def of_qkv(qkv):
            q, k, v = qkv.permute(2, 0, 3, 1, 4)
            return attention(f(q, *turn), f(k, *turn), v)

        return grad(lambda y, t: jvp(of_qkv, (y,), (t,))[1].square().sum(), (0, 1))

    check(scores(rope)(qkv, t), scores(rotate_half)(qkv, t), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bit_results_are_rounded_once(dtype):
    x, turn = draw(G, H, N, D, dtype=dtype), table("partial")
    out, t_out = jvp(lambda x: rope(x, *turn), (x,), (x,))
    expected = rotate_half(x.double(), *turn)
    assert out.dtype == t_out.dtype == dtype
    assert torch.equal(out, expected.to(dtype))
    assert torch.equal(t_out, expected.to(dtype))


def test_compiled():
    turn = table("partial")

    def step(x, t):
        out, t_out = jvp(lambda x: rope(x, *turn), (x,), (t,))
        return out.square().sum() + t_out.pow(3).sum()

    def gradients(f):
        leaves = draw(G, H, N, D).requires_grad_(), draw(G, H, N, D, seed=1).requires_grad_()
        return torch.autograd.grad(f(*leaves), leaves)

    check(gradients(torch.compile(step, backend="aot_eager", fullgraph=True)), gradients(step))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a tensor, got list"),
        ({"x": torch.ones(N, D).long()}, TypeError, "x must have a floating point dtype"),
        ({"x": torch.ones(D)}, ValueError, r"x must be \[..., N, D\], got shape \(6,\)"),
        ({"cos": torch.ones(4, 2)}, ValueError, r"cos must be \[..., 3, R/2\] with R <= 6, got shape \(4, 2\)$"),
        ({"cos": torch.ones(N, D)}, ValueError, r"every angle twice, pass cos\[..., :3\], and sin likewise"),
        (
            {"cos": torch.ones(5, N, 2)},
            ValueError,
            r"cos must be broadcastable to \[2, N, R/2\], got shape \(5, 3, 2\)",
        ),
        ({"cos": torch.ones(1, 1, N, 2)}, ValueError, r"cos must be broadcastable to \[2, N, R/2\]"),
        ({"sin": torch.ones(N, 1)}, ValueError, r"sin must have the shape of cos, \(3, 2\), got shape \(3, 1\)"),
        (
            {"sin": torch.ones(N, 2)},
            ValueError,
            r"sin must hold every angle once, got two equal halves; pass sin\[..., :1\]",
        ),
        ({"sin": torch.ones(N, 2, device="meta")}, ValueError, "sin must be on the device of x"),
        ({"backend": "triton"}, ValueError, "backend='triton' cannot serve rope: .*not float64"),
        ({"backend": "cuda"}, ValueError, "backend must be one of"),
    ],
)
def test_bad_input(change, error, message):
    cos, sin = draw(N, 2).cos(), draw(N, 2).sin()
    arguments = {
        "x": draw(2, N, D),
        "cos": cos,
        "sin": sin,
        **{k: v.to(DEVICE) if k == "device" else v for k, v in change.items()},
    }
    with pytest.raises(error, match=message):
        rope(**arguments)


def test_table_of_a_sequence():
    cos, sin = rope_table(5, 8)
    for p in range(5):
        for i in range(4):
            angle = p * 10000.0 ** (-2 * i / 8)
            assert cos[p, i].item() == pytest.approx(math.cos(angle), abs=1e-6)
            assert sin[p, i].item() == pytest.approx(math.sin(angle), abs=1e-6)


@pytest.mark.parametrize("sizes", [(3, 4), (2, 3, 4)])
def test_table_of_a_grid(sizes):
    """Each axis has the one-dimensional table of its own positions."""
    dim = 4 * len(sizes)
    cos, sin = rope_table(sizes, dim, base=100.0, dtype=torch.float64)
    assert cos.shape == sin.shape == (math.prod(sizes), dim // 2)
    for axis, part in enumerate(cos.chunk(len(sizes), dim=1)):
        alone, _ = rope_table(sizes[axis], 4, base=100.0, dtype=torch.float64)
        shape = [1] * len(sizes)
        shape[axis] = sizes[axis]
        assert torch.equal(part.view(*sizes, 2), alone.view(*shape, 2).expand(*sizes, 2))


def test_scores_depend_on_distances_only():
    cos, sin = rope_table((4, 4), 8, dtype=torch.float64)
    q, k = draw(8), draw(8, seed=1)
    scores = rope(q.expand(16, 8), cos, sin) @ rope(k.expand(16, 8), cos, sin).T
    scores = scores.view(4, 4, 4, 4)  # query row, column, key row, column
    assert_close(scores[:3, :3, :3, :3], scores[1:, 1:, 1:, 1:], 1e-13)


@pytest.mark.parametrize(
    ("sizes", "dim", "message"),
    [
        (4, 7, "dim must be a multiple of 2 on 1 axis, got 7"),
        ((4, 4), 6, "dim must be a multiple of 4 on 2 axes, got 6"),
        ((1, 1, 1, 1), 8, "sizes must have one, two or three axes, got 4"),
        ((), 8, "sizes must have one, two or three axes, got 0"),
        ((4, 0), 8, "sizes must be at least 1, got 0"),
    ],
)
def test_bad_table(sizes, dim, message):
    with pytest.raises(ValueError, match=message):
        rope_table(sizes, dim)
