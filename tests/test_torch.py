"""Every private PyTorch call in ``fastflow/_torch.py`` still does what the package needs of it.

A PyTorch upgrade fails here first: with a name, not with a wrong number elsewhere.
"""

import pytest
import torch
import torch.autograd.forward_ad as fwAD
from torch import Tensor
from torch.func import grad, jvp, vmap

from fastflow import _torch

X = torch.arange(6.0).view(2, 3) + 1


def seen(function):
    """Return what function says inside each transform, outermost transform first."""
    found = {}

    def note(name):
        def record(x: Tensor) -> Tensor:
            found[name] = function(x)
            return x.sum()

        return record

    note("none")(X)
    grad(note("grad"))(X)
    jvp(note("jvp"), (X,), (X,))
    vmap(note("vmap"))(X)
    vmap(grad(note("vmap of grad")))(X)
    jvp(grad(note("jvp of grad")), (X,), (X,))
    with fwAD.dual_level():
        note("dual level")(fwAD.make_dual(X, X))
    return found


def test_active_transforms():
    names = {
        "none": (),
        "grad": ("Grad",),
        "jvp": ("Jvp",),
        "vmap": ("Vmap",),
        "vmap of grad": ("Vmap", "Grad"),
        "jvp of grad": ("Jvp", "Grad"),
        "dual level": (),
    }
    assert seen(lambda _: _torch.transforms()) == names
    assert seen(lambda _: _torch.inside_transform()) == {name: bool(active) for name, active in names.items()}


def test_forward_mode():
    forward = {"jvp", "jvp of grad", "dual level"}
    assert {name for name, active in seen(lambda _: _torch.forward_mode_active()).items() if active} == forward
    assert {name for name, active in seen(lambda _: _torch.inside_jvp()).items() if active} == {"jvp", "jvp of grad"}


def test_values_below_transforms():
    for name, values in seen(_torch.unwrapped).items():
        assert torch.equal(values, X), name
        assert not values.requires_grad


def test_requires_grad_at_any_level():
    wanted = {"none": False, "vmap": False, "jvp": False, "dual level": False}
    wanted |= dict.fromkeys(("grad", "vmap of grad", "jvp of grad"), True)
    assert seen(_torch.requires_grad_at_any_level) == wanted
    leaf, found = torch.zeros(3, requires_grad=True), []
    vmap(lambda x: found.append(_torch.requires_grad_at_any_level(x)) or x)(leaf)
    assert found == [True]


def test_one_level_down():
    """The innermost jvp is not active inside, and its results are its own again."""

    def f(x: Tensor) -> Tensor:
        primal, tangent = fwAD.unpack_dual(x)

        def inside(p: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
            assert _torch.transforms() == ("Vmap",)
            return p.square(), 2 * p * t

        return fwAD.make_dual(*_torch.one_level_down(inside)(primal, tangent))

    values, tangents = vmap(lambda x, t: jvp(f, (x,), (t,)))(X, X.cos())
    torch.testing.assert_close(values, X.square())
    torch.testing.assert_close(tangents, 2 * X * X.cos())


class Double(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output) -> None:
        pass

    @staticmethod
    def backward(ctx, g: Tensor) -> Tensor:
        return 2 * g


def test_apply_is_functions_apply():
    leaf = X.clone().requires_grad_()
    _torch.apply(Double, leaf).sum().backward()
    assert torch.equal(leaf.grad, torch.full_like(X, 2))
    assert torch.equal(grad(lambda x: _torch.apply(Double, x).sum())(X), torch.full_like(X, 2))


def test_the_dispatcher_is_skipped_for_fresh_tensors_only():
    zeros_without_memory = []
    jvp(lambda x, y: zeros_without_memory.append(fwAD.unpack_dual(y).tangent) or x, (X, X), (X, torch.zeros_like(X)))
    assert _torch.can_skip_dispatcher(X, None, 1.0, "a", X.T, X.clone().requires_grad_())
    assert not _torch.can_skip_dispatcher(torch.nn.Buffer(X), torch._efficientzerotensor((2,)))
    assert not _torch.can_skip_dispatcher(X, X.to("meta"))
    assert not _torch.can_skip_dispatcher(X.to("meta"))
    assert not any(_torch.can_skip_dispatcher(x) for x in (X.to_sparse(), torch.complex(X, X).conj()))
    inside = seen(_torch.can_skip_dispatcher)
    assert inside == {**dict.fromkeys(inside, False), "none": True, "dual level": True}
    assert seen(lambda _: _torch.can_skip_dispatcher(1, "no tensor")) == inside
    with torch.utils._python_dispatch.TorchDispatchMode():
        assert not _torch.can_skip_dispatcher(X)


def test_foreach_lerp():
    starts, ends = [X.clone(), X.cos()], [X.sin(), X.exp()]
    wanted = [torch.lerp(a, b, 0.25) for a, b in zip(starts, ends)]
    _torch.foreach_lerp_(starts, ends, 0.25)
    for got, want in zip(starts, wanted):
        torch.testing.assert_close(got, want)


def test_constants_are_marked_as_pytorch_marks_them():
    def ours() -> int:
        return 1

    def theirs() -> int:
        return 1

    assert vars(_torch.constant_when_traced(ours)) == vars(torch.compiler.assume_constant_result(theirs))


@pytest.mark.parametrize("ask", [_torch.inside_transform, _torch.transforms])
def test_queries_are_constants_to_a_trace(ask):
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: (x, ask()), fullgraph=True, backend="eager")
    assert compiled(X)[1] == ask()


def test_the_tensor_below_transforms():
    for name, below in seen(lambda x: (x, _torch.below_transforms(x))).items():
        x, inner = below
        assert (inner is x) == (name in ("none", "dual level")), name
        assert type(inner) is Tensor


def test_classes_that_change_nothing():
    from torch._subclasses import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.nn.attention.bias import CausalBias

    class Plain(Tensor):
        pass

    transparent = (Tensor, Plain, torch.nn.Parameter, FakeTensor, FunctionalTensor, AsyncCollectiveTensor)
    assert all(map(_torch.is_transparent, transparent))
    assert not any(map(_torch.is_transparent, (CausalBias, torch.nn.UninitializedParameter)))


def test_conditions_on_symbolic_sizes_are_no_guards():
    assert _torch.holds_without_guard(True)
    assert not _torch.holds_without_guard(False)
    dim, found = torch.export.Dim("n", min=2, max=100), []

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            found.extend(_torch.holds_without_guard(x.shape[0] <= bound) for bound in (3, 100))
            return x + 1

    program = torch.export.export(Model(), (X,), dynamic_shapes=({0: dim},))
    assert found[:2] == [False, True]
    assert program.module()(torch.zeros(50, 3)).shape == (50, 3)


def test_the_dispatcher_is_not_skipped_under_a_trace():
    found = []
    torch.jit.trace(lambda x: found.append(_torch.can_skip_dispatcher(x)) or x + 1, X, check_trace=False)
    assert found == [False]


def test_own_attention_is_pytorchs(monkeypatch):
    x = torch.randn(1, 2, 5, 4)
    expected = torch.nn.functional.scaled_dot_product_attention(x, x, x, is_causal=True)
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
    torch.testing.assert_close(_torch.own_attention(x, x, x, is_causal=True), expected)


def test_batched_gradients_are_seen_and_unpacked():
    """The mechanism behind is_grads_batched=True, which is not torch.func's."""
    levels = []

    class Identity(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, g: Tensor) -> Tensor:
            assert _torch.is_batched_grad(g)
            values, level = _torch.unbatched_grad(g)
            levels.append(level)
            assert not _torch.is_batched_grad(values)
            assert torch.equal(values, G)
            return _torch.batched_grad(2 * values, level)

    G, leaf = torch.randn(4, 2, 3), X.clone().requires_grad_()
    (got,) = torch.autograd.grad(Identity.apply(leaf), leaf, G, is_grads_batched=True)
    assert torch.equal(got, 2 * G)
    assert levels == [1]
    assert _torch.unbatched_grad(X) == (X, None)
    assert not any(seen(_torch.is_batched_grad).values())


def test_tangents_are_seen_at_any_level():
    found = {}

    def ask(name):
        def function(x):
            found[name] = _torch.has_tangent_at_any_level(x)
            return x.sin().sum()

        return function

    jvp(ask("jvp"), (X,), (X,))
    jvp(grad(ask("jvp of grad")), (X,), (X,))
    jvp(vmap(ask("jvp of vmap")), (X,), (X,))
    jvp(lambda w: grad(lambda x: ask("captured")(w) + x.sum())(X), (X,), (X,))
    vmap(lambda t: jvp(ask("vmap of jvp"), (X,), (t,)))(torch.stack([X, X]))
    grad(ask("grad"))(X)
    jvp(lambda x: ask("constant")(X) + x.sum(), (X,), (X,))
    with fwAD.dual_level():
        ask("dual level")(fwAD.make_dual(X, X))
    ask("none")(X)
    compiled = torch.compile(lambda f, x: jvp(f, (x,), (x,)), backend="eager", fullgraph=True)
    compiled(ask("compiled"), X)
    compiled(lambda x: ask("compiled constant")(X) + x.sum(), X)
    without = dict.fromkeys(["grad", "constant", "none", "compiled constant"], False)
    assert found == {**dict.fromkeys(found, True), **without}


def test_function_modes_come_and_go_in_any_order():
    class Mode(torch.overrides.TorchFunctionMode):
        pass

    ours, theirs = Mode(), Mode()
    stack = torch.overrides._get_current_function_mode_stack
    with theirs:
        _torch.push_function_mode_below(ours)
        assert stack() == [ours, theirs]
        _torch.remove_function_mode(ours)
        _torch.remove_function_mode(ours)
        assert stack() == [theirs]
    assert stack() == []


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpoint_looks_its_parts_up_at_each_call(use_reentrant, monkeypatch):
    called = []
    for role, (owner, name) in _torch.checkpoint_places().items():
        original = getattr(owner, name)

        def wrapped(*args, original=original, role=role, **kwargs):
            called.append((role, function in args[:2]))
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, staticmethod(wrapped) if isinstance(owner, type) else wrapped)

    def function(x):
        return x.sin()

    x = X.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(function, x, use_reentrant=use_reentrant).sum().backward()
    assert called == (
        [("forward", True), ("backward", False)] if use_reentrant else [("generator", True), ("hook", False)]
    )


def test_weight_norm_is_kept_in_two_places():
    assert [owner._weight_norm for owner in _torch.weight_norm_owners()] == [torch._weight_norm] * 2


def test_traces_of_autograd_are_noticed():
    seen = []

    class Ask(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(_torch.traced_by_autograd())
            return x * 2

    torch.fx.experimental.proxy_tensor.make_fx(Ask.apply)(X)
    Ask.apply(X)
    assert seen == [True, False]


def test_requires_grad_at_recording_level():
    """At the innermost level that records, which vmap and jvp are not."""
    wanted = dict.fromkeys(("none", "vmap", "jvp", "dual level"), False)
    wanted |= dict.fromkeys(("grad", "vmap of grad", "jvp of grad"), True)
    assert seen(_torch.requires_grad_at_recording_level) == wanted
    leaf, found = torch.zeros(3, requires_grad=True), []
    vmap(lambda x: found.append(_torch.requires_grad_at_recording_level(x)) or x)(leaf)
    jvp(lambda x: found.append(_torch.requires_grad_at_recording_level(x)) or x, (leaf,), (leaf,))
    grad(lambda x: found.append(_torch.requires_grad_at_recording_level(leaf)) or x)(torch.zeros(()))
    grad(lambda x: vmap(lambda y: found.append(_torch.requires_grad_at_recording_level(y)) or x)(leaf).sum())(
        torch.zeros(())
    )
    grad(lambda x: vmap(lambda y: found.append(_torch.requires_grad_at_recording_level(y)) or y)(x).sum())(leaf)
    assert found == [True, True, False, False, True]


def test_is_fake():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode() as mode:
        assert _torch.is_fake(torch.empty(2))
        assert _torch.is_fake(mode.from_tensor(torch.ones(2)))
    assert not _torch.is_fake(torch.ones(2))


def test_native_layer_norm_backward():
    x, w, b, g = (torch.randn(*shape, requires_grad=True) for shape in ((3, 4), (4,), (4,), (3, 4)))
    out, mean, rstd = torch.native_layer_norm(x, (4,), w, b, 1e-5)
    expected = torch.autograd.grad(out, (x, w), g)
    *actual, none = _torch.native_layer_norm_backward(g, x, (4,), mean, rstd, w, b, (True, True, False))
    assert none is None
    torch.testing.assert_close(tuple(actual), expected)


def test_weight_norm_backward():
    w, a, g = (torch.randn(3, n, requires_grad=True) for n in (4, 1, 4))
    norm = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
    expected = torch.autograd.grad(a * w / norm, (w, a), g)
    torch.testing.assert_close(_torch.weight_norm_backward(g, w, a, norm), expected)


def test_builtin_functions():
    torch.testing.assert_close(_torch.builtin_functions().silu(X), X * X.sigmoid())


def test_native_layer_norm_is_pytorchs(monkeypatch):
    expected = torch.native_layer_norm(X, (3,), None, None, 1e-5)
    monkeypatch.setattr(torch, "native_layer_norm", None)
    for a, b in zip(_torch.native_layer_norm(X, (3,), None, None, 1e-5), expected):
        torch.testing.assert_close(a, b)


def test_unviewed():
    base = torch.ones(2, 3)
    assert not _torch.unviewed(base.view(6))._is_view()
    assert _torch.unviewed(base) is base


def test_own_linear():
    w, b = torch.randn(4, 3), torch.randn(4)
    torch.testing.assert_close(_torch.own_linear(X, w, b), X @ w.mT + b)
    torch.testing.assert_close(_torch.own_linear(X, w, None), X @ w.mT)


def test_innermost_is_jvp():
    wanted = dict.fromkeys(("none", "grad", "vmap", "vmap of grad", "jvp of grad", "dual level"), False)
    assert seen(lambda x: _torch.innermost_is_jvp()) == wanted | {"jvp": True}


def test_duals_are_made_and_unpacked():
    def double(x: Tensor) -> Tensor:
        assert _torch.unpacked(X) == (X, None)
        assert _torch.unpacked(None) == (None, None)
        primal, tangent = _torch.unpacked(x)
        return _torch.dual(2 * primal, 2 * tangent)

    for a, b in zip(jvp(double, (X,), (X.cos(),)), (2 * X, 2 * X.cos())):
        torch.testing.assert_close(a, b)


def test_through_vmap():
    """The rule sees the mapped axes one level down, once for each level that maps an argument."""
    calls = []

    def double(x: Tensor, factor: float) -> tuple[Tensor, ...]:
        calls.append((x.shape, _torch.transforms()))
        return (x * factor,)

    def rule(function, info, dims, args):
        calls.append((info.batch_size, dims))
        return function(args[0].movedim(dims[0], 0), args[1]), (0,)

    def mapped(x: Tensor) -> Tensor:
        return _torch.through_vmap(nested, rule, (x, 2.0))[0]

    def nested(*args):
        if _torch.transforms()[-1:] == ("Vmap",):
            return _torch.through_vmap(double, rule, args)
        return double(*args)

    assert torch.equal(vmap(mapped, 1)(X), 2 * X.T)
    assert calls == [(3, (0, None)), ((3, 2), ())] or calls == [(3, (1, None)), ((3, 2), ())]
    calls.clear()
    assert torch.equal(vmap(lambda _: mapped(X))(torch.zeros(5)), (2 * X).expand(5, 2, 3))
    assert calls == [((2, 3), ())]
    calls.clear()
    assert torch.equal(vmap(vmap(mapped))(X), 2 * X)
    assert [c for c in calls if c[1] == ()] == [((2, 3), ())]
    pull = torch.func.vjp(lambda x: (x * x).sum(), X)[1]  # its tensors are wrapped by a level that has ended
    assert torch.equal(vmap(lambda c: mapped(pull(c)[0]))(torch.ones(2)), (4 * X).expand(2, 2, 3))
