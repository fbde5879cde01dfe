"""The derivative rules themselves: numerical checks, the custom ops' contracts, what is shared, skipped and refused."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from fastflow.kernels.attention import blocks, cpu
from fastflow.ops.attention import attention, attention_jvp
from fastflow.ops.attention.op import OP
from fastflow.ops.attention.problem import canonical
from fastflow.ops.attention.select import select
from tests.compare import assert_close, math_attention

B, H, NQ, NK, D, DV = 1, 2, 3, 4, 2, 3  # short rows: Nk <= D + Dv
LONG = 6  # Nk > D + Dv


def draw(*shape: int, seed: int = 0, **kwargs: Any) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed), **kwargs)


def primals(*lead: int, seed: int = 0, keys: int = NK) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((B, H, NQ, D), (B, H, keys, D), (B, H, keys, DV))
    return tuple(draw(*lead, *shape, seed=seed + i) for i, shape in enumerate(shapes))  # type: ignore[return-value]


def options(*x: Tensor, mask: Tensor | None = None, is_causal: bool = False, backend: str = "reference") -> Any:
    """The options of a call, with the name of the implementation that serves it."""
    problem = canonical(*x, mask, 0.0, is_causal, 0.7, False)
    return 0.7, is_causal, select(problem, backend).name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Record the calls of the blocked implementation: (function, arguments) in order."""
    seen: list[tuple[str, Any]] = []
    for name in ("dual_forward", "dual_backward"):
        original = getattr(cpu, name)

        def spy(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            seen.append((name, args))
            return original(*args, **kwargs)

        monkeypatch.setattr(cpu, name, spy)
    return seen


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("keys", [NK, LONG])
def test_gradcheck(backend: str, is_causal: bool, keys: int) -> None:
    x = [y.requires_grad_() for y in primals(keys=keys)]
    if backend == "auto":
        x[2] = draw(B, H, keys, D).requires_grad_()

    def f(*x: Tensor) -> Tensor:
        return attention(*x, is_causal=is_causal, backend=backend)

    assert torch.autograd.gradcheck(
        f, x, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )
    assert torch.autograd.gradgradcheck(f, x, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True)


@pytest.mark.parametrize("keys", [NK, LONG])
def test_gradcheck_of_the_tangent(keys: int) -> None:
    x = [y.requires_grad_() for y in (*primals(keys=keys), *primals(seed=9, keys=keys))]
    assert torch.autograd.gradcheck(lambda *x: attention_jvp(*x), x, check_batched_grad=True)


def _op_arguments(keys: int) -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    q, k, v = primals(keys=keys)
    t = primals(2, seed=5, keys=keys)
    mask = draw(1, 1, NQ, keys)
    masked, unmasked = options(q, k, v, mask=mask), options(q, k, v)
    out, state = OP.forward.op(q, k, v, mask, *masked)
    saved_unmasked = OP.forward.op(q, k, v, None, *unmasked)
    _, t_out, _, t_state = OP.dual_forward.op(q, k, v, *t, mask, *masked)
    g, h = draw(*out.shape, seed=11), draw(2, *out.shape, seed=12)
    square = draw(B, H, keys, D, seed=13)
    native, whole = (options(q, k, square, is_causal=causal, backend="auto") for causal in (True, False))
    yield "attention", OP.forward.op, (q, k, v, mask, *masked)
    yield "attention native", OP.forward.op, (q, k, square, None, *native)
    yield "attention whole", OP.forward.op, (q, k, square, None, *whole)
    yield "attention_backward", OP.backward.op, (g[None], q, k, v, mask, out, state, *masked)
    yield "attention_backward many", OP.backward.op, (h, q, k, v, None, *saved_unmasked, *unmasked)
    yield "attention_dual", OP.dual_forward.op, (q, k, v, *t, mask, *masked)
    yield "attention_dual partial", OP.dual_forward.op, (q, k, v, None, None, t[2], None, *unmasked)
    saved = (out, t_out, state, t_state)
    yield "attention_dual_backward", OP.dual_backward.op, (g, h, q, k, v, *t, mask, *saved, *masked)
    partial = (None, h, q, k, v, t[0], None, None, mask, *saved)
    yield "attention_dual_backward partial", OP.dual_backward.op, (*partial, *masked)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "op", "args"), [pytest.param(*x, id=x[0]) for x in _op_arguments(LONG)])
def test_opcheck_of_the_kernels(name: str, op: Any, args: tuple[Any, ...], device: torch.device) -> None:
    pytest.importorskip("triton")
    tensors = (x.to(device, torch.float32) if isinstance(x, Tensor) else x for x in args[:-1])
    torch.library.opcheck(op, (*tensors, "triton"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "op", "args"),
    [pytest.param(*x, id=f"{x[0]} {keys}") for keys in (NK, LONG) for x in _op_arguments(keys)],
)
def test_opcheck(name: str, op: Any, args: tuple[Any, ...]) -> None:
    if "dual_backward" in name:
        torch.library.opcheck(op, args)
    else:
        torch.library.opcheck(op, args, test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))
        args = tuple(x.clone().requires_grad_() if isinstance(x, Tensor) and x.ndim > 3 else x for x in args)
        args = tuple(x.detach() if isinstance(x, Tensor) and x.shape[:-1] == (1, 1, NQ) else x for x in args)
        torch.library.opcheck(op, args)


def test_many_tangents_share_one_softmax(calls: list[Any]) -> None:
    x, ts = primals(), primals(5, seed=3)
    vmap(lambda *t: jvp(attention, x, t)[1])(*ts)
    assert [name for name, _ in calls] == ["dual_forward"]
    q, tq = calls[0][1][0], calls[0][1][3]
    assert q.shape == (B, H, NQ, D)
    assert tq.shape == (5, B, H, NQ, D)


def test_many_cotangents_share_one_softmax(calls: list[Any]) -> None:
    out, pullback = vjp(lambda *x: attention(*x, backend="reference"), *primals())
    calls.clear()
    vmap(pullback)(draw(5, *out.shape))
    (name, (g, h, q, *_)), *rest = calls
    assert not rest
    assert name == "dual_backward"
    assert g is None
    assert h.shape == (5, *out.shape)
    assert q.shape == (B, H, NQ, D)


def test_missing_tangents_reach_the_kernel_as_none(calls: list[Any]) -> None:
    q, k, v = primals()
    jvp(lambda v: attention(q, k, v), (v,), (draw(*v.shape),))
    assert calls[0][1][3:5] == (None, None)
    assert calls[0][1][5].shape == (1, *v.shape)


def test_backward_without_tangent_cotangent_is_first_order(calls: list[Any]) -> None:
    """A stop-gradient target, as MeanFlow's, must not pay for the joint backward."""
    x = tuple(y.requires_grad_() for y in primals())
    out, _ = jvp(lambda *x: attention(*x, backend="reference"), x, primals(seed=5))
    calls.clear()
    out.sum().backward()
    (_, (_, h, _, _, _, *tangents)), *rest = calls
    assert not rest
    assert h is None
    assert tangents[:3] == [None, None, None]


@pytest.mark.parametrize("length", [NQ, LONG])
def test_attention_without_tangents_never_reaches_the_blocks(calls: list[Any], length: int) -> None:
    x = [draw(B, H, length, D, seed=i).requires_grad_() for i in range(3)]
    attention(*x).sum().backward()
    assert not calls


@pytest.mark.parametrize("keys", [NK, LONG])
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_probabilities_are_kept_where_rows_are_short(backend: str, keys: int) -> None:
    """The saved tensors never outgrow q and the output, so memory stays linear in the length."""
    q, k, v = primals(keys=keys)
    chosen = options(q, k, v, backend=backend)
    _, state = OP.forward.op(q, k, v, None, *chosen)
    _, _, same, t_state = OP.dual_forward.op(q, k, v, *primals(1, seed=5, keys=keys), None, *chosen)
    assert state.shape == same.shape == t_state.shape[1:]
    if keys == NK:
        assert_close(state, torch.softmax(0.7 * q @ k.mT, -1), 1e-14)
        assert state.shape[-1] <= q.shape[-1] + v.shape[-1]
    else:
        assert_close(state, torch.logsumexp(0.7 * q @ k.mT, -1), 1e-14)


def test_kept_probabilities_are_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [y.requires_grad_() for y in (*primals(), *primals(seed=5))]
    outs = attention_jvp(*leaves)
    monkeypatch.setattr(blocks.Block, "scores", None)
    torch.autograd.grad(outs, leaves, [torch.ones_like(x) for x in outs])


def test_zero_tangent_gives_exactly_zero() -> None:
    x = primals()
    _, tangent = attention_jvp(*x, *(torch.zeros_like(y) for y in x))
    assert torch.equal(tangent, torch.zeros_like(tangent))


@pytest.mark.parametrize("is_causal", [False, True])
def test_adjoint_identity(is_causal: bool) -> None:
    """⟨w, J v⟩ = ⟨Jᵀ w, v⟩."""
    x, t, w = primals(), primals(seed=5), draw(B, H, NQ, DV, seed=8)

    def f(*x: Tensor) -> Tensor:
        return attention(*x, is_causal=is_causal, backend="reference")

    forward = (w * jvp(f, x, t)[1]).sum()
    reverse = sum((a * b).sum() for a, b in zip(vjp(f, *x)[1](w), t))
    torch.testing.assert_close(forward, reverse, rtol=1e-13, atol=0)


def test_mask_gradient() -> None:
    """An additive mask that requires grad gets its gradient, and so do its tangent and the tangent's gradient."""
    x, t = primals(), primals(seed=5)
    bias, t_bias = draw(1, H, 1, NK, seed=7), draw(1, H, 1, NK, seed=8)

    def loss(f: Any, *x: Tensor) -> Tensor:
        out, tangent = jvp(lambda *y: f(*y[:3], attn_mask=y[3]), x[:4], x[4:])
        return out.square().sum() + tangent.square().sum()

    args, every = (*x, bias, *t, t_bias), tuple(range(1, 9))
    for a, e in zip(grad(loss, every)(attention, *args), grad(loss, every)(math_attention, *args)):
        assert_close(a, e, 1e-10)

    parameter = bias.clone().requires_grad_()
    jvp(lambda *y: attention(*y, attn_mask=2 * parameter), x, t)[1].square().sum().backward()
    expected = grad(lambda m: jvp(lambda *y: math_attention(*y, attn_mask=2 * m), x, t)[1].square().sum())(bias)
    assert_close(parameter.grad, expected, 1e-10)


def test_mask_gradient_under_vmap_is_right() -> None:
    xs, bias = primals(2), draw(1, H, 1, NK, seed=7)

    def loss(f: Any, m: Tensor) -> Tensor:
        return vmap(lambda *x: f(*x, attn_mask=m))(*xs).square().sum()

    assert_close(grad(loss, 1)(attention, bias), grad(loss, 1)(math_attention, bias), 1e-10)


def test_a_mask_gradient_is_never_silently_zero() -> None:
    """Each of the fused rules raises if it is reached with a mask that requires grad."""
    x, mask = [y.requires_grad_() for y in primals()], draw(1, 1, NQ, NK).requires_grad_()
    chosen = options(*x, mask=mask)
    out, _ = OP.forward.function.apply(*x, mask, *chosen)
    with pytest.raises(NotImplementedError, match="attn_mask"):
        out.sum().backward()
    _, tangent = attention_jvp(*x, primals(seed=5)[0], attn_mask=mask)
    with pytest.raises(NotImplementedError, match="attn_mask"):
        tangent.sum().backward()
    out, lse = OP.forward.op(*primals(), mask.detach(), *chosen)
    grads = OP.backward.function.apply(out[None], *x, mask, out, lse, *chosen)
    with pytest.raises(NotImplementedError, match="attn_mask"):
        grads[0].sum().backward()


def test_mapped_mask() -> None:
    x, t = (tuple(torch.cat((y, -y)) for y in primals(seed=seed)) for seed in (0, 5))
    masks = draw(3, 1, H, NQ, NK) > 0  # [V, 1, H, Nq, Nk] beside a batch of two

    def tangent(f: Any, m: Tensor) -> Tensor:
        return jvp(lambda *y: f(*y, attn_mask=m), x, t)[1]

    assert_close(vmap(tangent, (None, 0))(attention, masks), vmap(tangent, (None, 0))(math_attention, masks), 1e-10)


def _hidden_mask_tangent() -> None:
    xs, masks = primals(2), draw(2, 1, 1, NQ, NK)
    jvp(vmap(lambda q, m: attention(q, xs[1][0], xs[2][0], attn_mask=m)), (xs[0], masks), (xs[0], masks))


def _loss(*x: Tensor) -> Tensor:
    return attention(*x).square().sum()


def _thrice_in_reverse() -> None:
    q, k, v = primals()
    scalar = lambda g: g.square().sum()  # noqa: E731
    grad(lambda q: scalar(grad(lambda q: scalar(grad(_loss)(q, k, v)))(q)))(q)


def _reverse_reverse_forward() -> None:
    x, t = primals(), primals(seed=5)
    tangent = lambda q: jvp(attention, (q, *x[1:]), t)[1].square().sum()  # noqa: E731
    grad(lambda q: grad(tangent)(q).square().sum())(x[0])


def _forward_reverse_forward() -> None:
    x, t = primals(), primals(seed=5)
    jvp(grad(lambda *x: jvp(attention, x, t)[1].square().sum()), x, t)


def _forward_over_forward() -> None:
    x, t = primals(), primals(seed=5)
    jvp(lambda *x: jvp(attention, x, t)[1], x, t)


def _forward_over_attention_jvp() -> None:
    x, t = primals(), primals(seed=5)
    jvp(lambda *x: attention_jvp(*x, *t)[1], x, t)


def _forward_over_forward_through_vmap() -> None:
    x, t = primals(), primals(seed=5)
    jvp(lambda *x: vmap(lambda *t: jvp(attention, x, t)[1])(*primals(2)), x, t)


def _create_graph_thrice() -> None:
    x = [y.requires_grad_() for y in primals()]
    value = _loss(*x)
    for _ in range(3):
        value = torch.autograd.grad(value, x[0], create_graph=True)[0].square().sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (_thrice_in_reverse, "no third derivative"),
        (_reverse_reverse_forward, "no third derivative"),
        (_forward_reverse_forward, "forward-mode AD inside forward-mode AD"),
        (_create_graph_thrice, "no third derivative"),
        (_forward_over_forward, "forward-mode AD inside forward-mode AD"),
        (_forward_over_attention_jvp, "forward-mode AD inside forward-mode AD"),
        (_forward_over_forward_through_vmap, "forward-mode AD inside forward-mode AD"),
        (_hidden_mask_tangent, "cannot differentiate with respect to attn_mask"),
    ],
)
def test_unsupported_derivatives_raise(call: Any, message: str) -> None:
    with pytest.raises(NotImplementedError, match=message):
        call()


def test_third_derivative_in_a_bare_dual_level_is_nan() -> None:
    x, t = [y.requires_grad_() for y in primals()], primals(seed=5)
    with fwAD.dual_level():
        tangent = fwAD.unpack_dual(attention(*map(fwAD.make_dual, x, t))).tangent
        gradient = torch.autograd.grad(tangent.square().sum(), x[0])[0]
        assert fwAD.unpack_dual(gradient).primal.isfinite().all()
        assert fwAD.unpack_dual(gradient).tangent.isnan().all()
