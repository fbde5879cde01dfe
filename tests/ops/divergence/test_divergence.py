"""The divergence against closed forms, in every method and mode."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastflow as ff
from fastflow.kernels.divergence import reference
from tests.flows import PATHS, GaussianMixtureFlow
from tests.ops.divergence.problems import curved, linear, matrix, methods, modes, points


@pytest.mark.parametrize("path", PATHS, ids=lambda p: type(p).__name__)
def test_exact_divergence_of_the_mixture_flow(path):
    flow = GaussianMixtureFlow.example(path, dim=3)
    x = 2 * points(20, 3)
    t = torch.linspace(*path.domain, 22, dtype=torch.float64)[1:-1]
    r = ff.divergence(lambda x: flow.velocity(x, t), x, method="exact")
    truth = flow.divergence(x, t)
    assert (r.divergence - truth).abs().max() <= 1e-10 * truth.abs().max().clamp(min=1)
    assert torch.equal(r.value, flow.velocity(x, t))
    assert r.stderr is None


@modes
@pytest.mark.parametrize("shape", [(5,), (1, 1), (5, 6), (4, 2, 3), (3, 2, 3, 5)], ids=str)
def test_exact_trace_of_a_linear_field_of_any_shape(shape, mode):
    x = points(*shape)
    A = matrix(math.prod(shape[1:]))
    for chunk_size in (None, 1, 4):
        r = ff.divergence(linear(A), x, method="exact", mode=mode, chunk_size=chunk_size)
        assert (r.divergence - A.trace()).abs().max() <= 1e-10


@modes
@methods
@pytest.mark.parametrize("chunk_size", [1, 2, 3])
def test_chunks_change_nothing(method, mode, chunk_size):
    x, field = points(4, 2, 3), curved(matrix(6))
    whole = ff.divergence(field, x, mode=mode, **method)
    parts = ff.divergence(field, x, mode=mode, chunk_size=chunk_size, **method)
    torch.testing.assert_close(parts.divergence, whole.divergence, rtol=1e-12, atol=1e-12)
    assert torch.equal(parts.value, whole.value)
    if whole.stderr is not None:
        torch.testing.assert_close(parts.stderr, whole.stderr, rtol=1e-10, atol=1e-12)


KERNEL, WEIGHT = matrix(4).view(4, 4, 1, 1).expand(4, 4, 3, 3), matrix(6)
NETWORKS = {
    "layer norm": lambda x: F.layer_norm(x, x.shape[-1:]).sin(),
    "rms norm": lambda x: F.rms_norm(x, x.shape[-1:]).sin(),
    "group norm": lambda x: F.group_norm(x, 2).sin(),
    "attention": lambda x: ff.attention(x, x, x.sin()),
    "scaled dot product": lambda x: F.scaled_dot_product_attention(x, x, x.sin()),
    "convolution": lambda x: F.conv2d(x, KERNEL, padding=1).tanh(),
    "gelu": lambda x: F.gelu(x @ WEIGHT, approximate="tanh"),
}
ONCE_DIFFERENTIABLE = {"scaled dot product"}


@modes
@pytest.mark.parametrize("recorded", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_layers_of_networks(name, recorded, mode):
    if name in ONCE_DIFFERENTIABLE and mode == "forward":
        pytest.skip("PyTorch has no forward mode for it")
    field, x = NETWORKS[name], points(2, 4, 5, 6)
    J = torch.func.vmap(torch.func.jacrev(lambda s: field(s[None])[0]))(x).reshape(2, 120, 120)
    with torch.set_grad_enabled(recorded):
        r = ff.divergence(field, x, method="exact", mode=mode)
        forms = ff.divergence(field, x, num_probes=3, mode=mode)
    torch.testing.assert_close(r.divergence, J.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-9, atol=1e-9)
    probes = reference.probes((3, 2, 120), 0, 0, 0, "rademacher").double()
    torch.testing.assert_close(forms.divergence, torch.einsum("kbi,bij,kbj->b", probes, J, probes) / 3)


@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in ONCE_DIFFERENTIABLE])
def test_gradient_through_layers_of_networks(name, together):
    """Against finite differences: in PyTorch, fused norms and batched pullbacks have both lost part of it."""
    field, x = NETWORKS[name], points(1, 4, 5, 6).requires_grad_()

    def total(x: Tensor) -> Tensor:
        return ff.divergence(field, x, num_probes=3, chunk_size=together).divergence.sum()

    (gradient,) = torch.autograd.grad(total(x), x)
    direction, step = points(2, 4, 5, 6)[1:], 1e-5
    with torch.no_grad():
        slope = (total(x + step * direction) - total(x - step * direction)) / (2 * step)
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-6, abs=1e-6)


@modes
@pytest.mark.parametrize("distribution", ["rademacher", "gaussian"])
def test_estimate_and_its_error_are_the_moments_of_the_quadratic_forms(distribution, mode):
    A, x = matrix(6), points(4, 2, 3)
    r = ff.divergence(linear(A), x, num_probes=5, distribution=distribution, mode=mode, seed=3, offset=4)
    probes = reference.probes((5, 4, 6), 3, 4, 0, distribution).double()
    forms = torch.einsum("kbi,ij,kbj->kb", probes, A, probes)
    torch.testing.assert_close(r.divergence, forms.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(r.stderr, forms.std(0) / math.sqrt(5), rtol=1e-12, atol=1e-12)


@modes
def test_the_callers_own_probes(mode):
    A, x, probes = matrix(6), points(4, 6), points(3, 4, 6)
    r = ff.divergence(linear(A), x, probes=probes, mode=mode, chunk_size=2)
    torch.testing.assert_close(r.divergence, torch.einsum("kbi,ij,kbj->b", probes, A, probes) / 3)


def test_one_probe_has_no_standard_error():
    assert ff.divergence(torch.sin, points(4, 2)).stderr is None


def test_diagonal_jacobians_need_one_sign_probe():
    x = points(7, 3)
    assert torch.allclose(ff.divergence(torch.sin, x).divergence, x.cos().sum(1), rtol=1e-14)


@modes
def test_hutch_plus_plus_is_exact_on_few_large_eigenvalues(mode):
    """The sketch of seven Jacobian products spans a Jacobian of rank two, so no variance remains."""
    U, V = points(2, 12), points(3, 2, 12)[2]
    r = ff.divergence(linear(U.T @ V), points(5, 12), method="hutch++", num_probes=7, mode=mode)
    torch.testing.assert_close(r.divergence, (U * V).sum().expand(5), rtol=1e-10, atol=1e-10)
    assert r.stderr.max() < 1e-10


def test_hutch_plus_plus_with_a_full_sketch_is_the_exact_trace():
    x, field = points(4, 3), curved(matrix(3))
    r = ff.divergence(field, x, method="hutch++", num_probes=9)
    torch.testing.assert_close(r.divergence, ff.divergence(field, x, method="exact").divergence, rtol=1e-12, atol=1e-12)
    assert r.stderr is None


@modes
def test_the_field_is_evaluated_once(mode):
    calls = 0

    def field(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.sin(x)

    ff.divergence(field, points(4, 3), num_probes=8, chunk_size=8, mode=mode)
    assert calls == 1


@pytest.mark.parametrize("mode", ["reverse", "auto"])
def test_reverse_mode_evaluates_the_field_once_for_all_chunks(mode):
    calls = 0

    def field(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.sin(x)

    for recorded in (False, True):
        calls = 0
        with torch.set_grad_enabled(recorded):
            ff.divergence(field, points(4, 3), num_probes=8, chunk_size=2, mode=mode)
        assert calls == 1


@modes
def test_half_precision_divergence_is_summed_in_fp32(mode):
    x = points(4, 300).bfloat16()
    r = ff.divergence(lambda x: 3 * x, x, mode=mode)
    assert r.value.dtype == torch.bfloat16
    assert r.divergence.dtype == torch.float32
    assert torch.equal(r.divergence, torch.full((4,), 900.0))


@modes
@methods
def test_triton_and_reference_agree(method, mode, device):
    """Triton on the GPU, if there is one, PyTorch on the CPU; the probes are the same numbers on both."""
    x, A = points(4, 2, 33, dtype=torch.float32), matrix(66, torch.float32) / 8
    kwargs = {"mode": mode, "chunk_size": 2, **method}

    def both(backend: str, device: torch.device) -> tuple[Tensor, Tensor]:
        def divergence(x: Tensor) -> Tensor:
            return ff.divergence(curved(A.to(device)), x, backend=backend, **kwargs).divergence

        y = x.to(device)
        return divergence(y).cpu(), torch.func.grad(lambda x: divergence(x).square().sum())(y).cpu()

    triton, reference = both("triton", device), both("reference", torch.device("cpu"))
    torch.testing.assert_close(triton[0], reference[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(triton[1], reference[1], rtol=1e-4, atol=1e-4)
