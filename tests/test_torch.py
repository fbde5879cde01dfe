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


def test_records_gradients():
    """At the innermost level that records, which vmap and jvp are not."""
    wanted = dict.fromkeys(("none", "vmap", "jvp", "dual level"), False)
    wanted |= dict.fromkeys(("grad", "vmap of grad", "jvp of grad"), True)
    assert seen(_torch.records_gradients) == wanted
    leaf, found = torch.zeros(3, requires_grad=True), []
    vmap(lambda x: found.append(_torch.records_gradients(x)) or x)(leaf)
    jvp(lambda x: found.append(_torch.records_gradients(x)) or x, (leaf,), (leaf,))
    grad(lambda x: found.append(_torch.records_gradients(leaf)) or x)(torch.zeros(()))
    grad(lambda x: vmap(lambda y: found.append(_torch.records_gradients(y)) or x)(leaf).sum())(torch.zeros(()))
    grad(lambda x: vmap(lambda y: found.append(_torch.records_gradients(y)) or y)(x).sum())(leaf)
    assert found == [True, True, False, False, True]
