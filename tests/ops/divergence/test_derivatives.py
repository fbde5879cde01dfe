"""Gradients through divergence, and divergence under transforms and torch.compile."""

import pytest
import torch
from torch import Tensor

import fastflow as ff
from fastflow.kernels.divergence import reference
from fastflow.ops.divergence import custom_ops as library
from tests.ops.divergence.problems import METHODS, MODES, curved, matrix, methods, modes, points


@modes
@pytest.mark.parametrize("method", [*METHODS[:2], {"num_probes": 1}, {"method": "hutch++", "num_probes": 12}], ids=str)
def test_gradcheck(method, mode):
    field = curved(matrix(4))
    x = points(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: ff.divergence(field, x, mode=mode, **method)[:2], x)
    assert torch.autograd.gradgradcheck(lambda x: ff.divergence(field, x, mode=mode, **method).divergence, x)


@modes
def test_gradient_of_hutch_plus_plus_holds_its_sketch_fixed(mode):
    A, x = matrix(4), points(1, 4).requires_grad_()
    field = curved(A)
    (got,) = torch.autograd.grad(ff.divergence(field, x, method="hutch++", num_probes=5, mode=mode).divergence.sum(), x)
    probes = reference.probes((4, 1, 4), 0, 0, 0, "rademacher")[:, 0].double()
    J = torch.func.jacrev(lambda s: field(s[None])[0])
    sketch = J(x[0]) if mode == "forward" else J(x[0]).T
    Q = torch.linalg.qr(sketch.detach() @ probes[:1].T).Q
    rest = probes[1:].T - Q @ (Q.T @ probes[1:].T)

    def estimate(s: Tensor) -> Tensor:
        return (Q.T @ J(s) @ Q).trace() + (rest.T @ J(s) @ rest).trace() / 3

    torch.testing.assert_close(got[0], torch.func.grad(estimate)(x[0].detach()))


@modes
def test_gradient_in_parameters_alone(mode):
    """The field's parameters are in the graph, x is not."""
    x, W = points(5, 4), matrix(4).requires_grad_()
    r = ff.divergence(lambda x: torch.tanh(x @ W.T), x, method="exact", mode=mode)
    (got,) = torch.autograd.grad(r.divergence.sum(), W)
    slope = (1 - torch.tanh(x @ W.T).square()) * W.diagonal()
    (want,) = torch.autograd.grad(slope.sum(), W)
    torch.testing.assert_close(got, want)


@modes
@methods
def test_gradient_is_the_same_whether_x_was_recorded_or_transformed(method, mode):
    x, field = points(4, 3), curved(matrix(3))
    with_grad = x.clone().requires_grad_()
    recorded = ff.divergence(field, with_grad, mode=mode, **method)
    (tape,) = torch.autograd.grad(recorded.divergence.sum() + recorded.value.sum(), with_grad)

    def total(x: Tensor) -> Tensor:
        r = ff.divergence(field, x, mode=mode, **method)
        return r.divergence.sum() + r.value.sum()

    torch.testing.assert_close(torch.func.grad(total)(x), tape, rtol=1e-12, atol=1e-12)


@modes
@methods
def test_transforms(method, mode):
    x, v, field = points(4, 3), points(3, 4, 3)[1], curved(matrix(3))

    def f(x: Tensor) -> Tensor:
        return ff.divergence(field, x, mode=mode, **method).divergence

    out, tangent = torch.func.jvp(f, (x,), (v,))
    assert torch.allclose(out, f(x))
    jacobian = torch.func.jacrev(f)(x)
    torch.testing.assert_close(tangent, torch.einsum("bcj,cj->b", jacobian, v), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(torch.func.vmap(f)(torch.stack((x, x + v))), torch.stack((f(x), f(x + v))))


def test_nothing_is_recorded_without_gradients():
    W = matrix(3).requires_grad_()
    with torch.no_grad():
        for mode in MODES:
            r = ff.divergence(lambda x: x @ W, points(4, 3).requires_grad_(), num_probes=2, mode=mode)
            assert not any(x.requires_grad for x in r)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_compiles_whole_with_the_chunk_loop_inside(mode, backend, device):
    x = points(4, 6, dtype=torch.float32).to(device).requires_grad_()
    field = curved(matrix(6, torch.float32).to(device))

    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        r = ff.divergence(field, x, num_probes=3, chunk_size=2, mode=mode, backend=backend)
        return r.divergence, r.stderr

    torch.compiler.reset()
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(x), f(x)):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    got, want = (torch.autograd.grad(g(x)[0].square().sum(), x) for g in (compiled, f))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", [METHODS[0], METHODS[2]], ids=["exact", "hutch++"])
def test_the_other_methods_compile_whole(method):
    x, field = points(4, 6, dtype=torch.float32), curved(matrix(6, torch.float32))

    def f(x: Tensor) -> Tensor:
        return ff.divergence(field, x, chunk_size=3, **method).divergence

    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_compiles_with_inductor():
    x, field = points(4, 6, dtype=torch.float32), curved(matrix(6, torch.float32))

    def f(x: Tensor) -> Tensor:
        return ff.divergence(field, x, num_probes=2).divergence

    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(f, fullgraph=True)(x), f(x), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_custom_ops_pass_opcheck(device):
    draw = (1, 2, 3, "rademacher", torch.float32)
    torch.library.opcheck(library.probe_dots, (torch.randn(2, 3, 5, device=device, requires_grad=True), *draw))
    torch.library.opcheck(library.probes, ([2, 3, 5], device, "reference", *draw))
    torch.library.opcheck(library.scaled_probes, (torch.randn(2, 3, device=device), [2, 3, 5], torch.float32, *draw))
