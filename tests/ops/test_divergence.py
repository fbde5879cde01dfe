"""The divergence: closed forms, every method and mode, derivatives, transforms, errors."""

import logging
import math
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastflow as ff
from fastflow import paths
from fastflow.kernels.divergence import reference
from fastflow.ops import _divergence_library as library
from fastflow.ops import _jacobian
from fastflow.ops import divergence as module
from tests.problems import GaussianMixtureFlow

MODES = ["forward", "reverse", "auto"]
METHODS = [{"method": "exact"}, {"num_probes": 5}, {"method": "hutch++", "num_probes": 7}]
PATHS = [
    paths.CondOT(),
    paths.SigmaMin(0.1),
    paths.Cosine(),
    paths.Polynomial(2),
    paths.VP(),
    paths.LinearVP(),
    paths.Independent(0.1),
    paths.SchrodingerBridge(0.5),
]
modes = pytest.mark.parametrize("mode", MODES)
methods = pytest.mark.parametrize("method", METHODS, ids=["exact", "hutchinson", "hutch++"])


def matrix(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(size, size, generator=torch.Generator().manual_seed(size), dtype=dtype)


def points(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype)


def linear(A: Tensor):
    """x to A x on the elements of each sample."""
    return lambda x: (x.flatten(1) @ A.T).view(x.shape) if x.ndim > 1 else A[0, 0] * x


def curved(A: Tensor):
    """A nonlinear field with a full Jacobian."""
    return lambda x: torch.tanh(linear(A)(x)) * (1 + x.square())


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
def test_what_networks_are_made_of(name, recorded, mode):
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
def test_gradient_through_what_networks_are_made_of(name, together):
    """Against finite differences: fused norms and batched pulls have both lost part of this gradient in PyTorch."""
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
    """A Jacobian of rank two lies in the sketch of seven products: no variance remains."""
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
    """On their devices: the probes are the same numbers on both."""
    x, A = points(4, 2, 33, dtype=torch.float32), matrix(66, torch.float32) / 8
    kwargs = {"mode": mode, "chunk_size": 2, **method}

    def both(backend: str, device: torch.device) -> tuple[Tensor, Tensor]:
        def divergence(x: Tensor) -> Tensor:
            return ff.divergence(curved(A.to(device)), x, backend=backend, **kwargs).divergence

        y = x.to(device)
        return divergence(y).cpu(), torch.func.grad(lambda x: divergence(x).square().sum())(y).cpu()

    triton, plain = both("triton", device), both("reference", torch.device("cpu"))
    torch.testing.assert_close(triton[0], plain[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(triton[1], plain[1], rtol=1e-4, atol=1e-4)


# Derivatives and transforms


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
    """x is no part of the graph, the field's parameters are."""
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


def test_a_constant_field_has_divergence_zero():
    x = points(4, 3)
    for given in (x, x.clone().requires_grad_()):
        for mode in MODES:
            r = ff.divergence(lambda x: torch.ones(4, 3, dtype=x.dtype), given, num_probes=2, mode=mode)
            assert torch.equal(r.divergence, torch.zeros(4, dtype=x.dtype))


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


@methods
def test_every_method_compiles_whole(method):
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


def test_custom_ops_pass_opcheck(device):
    draw = (1, 2, 3, "rademacher", torch.float32)
    torch.library.opcheck(library.probe_dots, (torch.randn(2, 3, 5, device=device, requires_grad=True), *draw))
    torch.library.opcheck(library.probes, ([2, 3, 5], *draw, device))
    torch.library.opcheck(library.scaled_probes, (torch.randn(2, 3, device=device), [2, 3, 5], torch.float32, *draw))


# Fields that are special


class Doubled(torch.autograd.Function):
    """2 x without a forward mode."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return 2 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


def test_auto_takes_a_field_without_forward_mode_in_reverse(monkeypatch, caplog):
    monkeypatch.setattr(_jacobian, "_choose", lambda x: "forward")
    _jacobian._log_once.cache_clear()
    fields = [Doubled.apply, lambda x: torch.cdist(x, x).new_zeros(()) + 2 * x + 0 * torch.cdist(x, x).sum()]
    for field in fields:
        with caplog.at_level(logging.INFO, "fastflow"):
            r = ff.divergence(field, points(4, 3), num_probes=5, chunk_size=2)
        assert torch.allclose(r.divergence, torch.tensor(6.0, dtype=torch.float64))
    assert "no forward mode" in caplog.text
    with pytest.raises(NotImplementedError, match="forward"):
        ff.divergence(Doubled.apply, points(4, 3), mode="forward")


def test_errors_of_the_field_itself_are_not_swallowed(monkeypatch):
    monkeypatch.setattr(_jacobian, "_choose", lambda x: "forward")

    def broken(x: Tensor) -> Tensor:
        raise NotImplementedError("not yet")

    with pytest.raises(NotImplementedError, match="not yet"):
        ff.divergence(broken, points(4, 3))


def test_random_fields_show_every_probe_the_same_field():
    x = points(4, 50)
    for mode in ("forward", "reverse"):
        torch.manual_seed(0)
        r = ff.divergence(lambda x: F.dropout(x, 0.5), x, num_probes=3, mode=mode)
        assert torch.equal(r.divergence, 2.0 * (r.value != 0).sum(1))


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize(
    "field",
    [lambda x: x - x.mean(0), lambda x: x + x.roll(1, 0), lambda x: x + 1e-30 * x[4] * (torch.arange(7) == 5)[:, None]],
    ids=["mean", "neighbour", "one pair"],
)
def test_interacting_samples_are_found(field, mode):
    with pytest.raises(ValueError, match="field must treat the samples of a batch independently"):
        ff.divergence(field, points(7, 3), mode=mode, check_independence=True)


@modes
def test_independent_samples_pass_the_check(mode):
    A, x = matrix(3), points(7, 3)
    r = ff.divergence(linear(A), x, method="exact", mode=mode, check_independence=True)
    assert torch.allclose(r.divergence, A.trace())
    assert ff.divergence(linear(A), x[:1], mode=mode, check_independence=True).value.shape == (1, 3)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
@methods
def test_empty(shape, method):
    r = ff.divergence(torch.sin, torch.empty(shape), **method)
    assert r.value.shape == shape
    assert torch.equal(r.divergence, torch.zeros(shape[0]))


@modes
def test_inference_mode_is_refused(mode):
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode\(\): use torch.no_grad\(\)"):
        ff.divergence(torch.sin, points(4, 3), mode=mode)


class PeakMemory(TorchDispatchMode):
    """The largest number of bytes that tensors made inside held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in torch.utils._pytree.tree_leaves(out):
            if isinstance(x, Tensor):
                self._add(x.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_memory_grows_with_the_chunk_and_not_with_the_probes(mode):
    W = torch.randn(64, 4096)

    def field(x: Tensor) -> Tensor:
        return torch.tanh(x @ W) @ W.T

    def peak(**kwargs) -> int:
        with torch.no_grad(), PeakMemory() as memory:
            ff.divergence(field, torch.randn(16, 64), mode=mode, **kwargs)
        return memory.peak

    small, large = peak(num_probes=4, chunk_size=4), peak(num_probes=64, chunk_size=4)
    assert large < 1.2 * small
    assert peak(num_probes=64, chunk_size=64) > 6 * small
    assert peak(method="exact", chunk_size=4) < 1.2 * small


# What is refused, and what is remarked


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"method": "hutch"}, "method must be one of 'hutchinson', 'exact', 'hutch\\+\\+', got 'hutch'"),
        ({"distribution": "normal"}, "distribution must be one of 'rademacher', 'gaussian', got 'normal'"),
        ({"mode": "backward"}, "mode must be one of 'auto', 'forward', 'reverse', got 'backward'"),
        ({"backend": "cuda"}, "backend must be one of 'auto', 'triton', 'reference', got 'cuda'"),
        ({"num_probes": 0}, "num_probes must be at least 1, got 0"),
        ({"chunk_size": 0}, "chunk_size must be at least 1, got 0"),
        ({"seed": -1}, "seed must satisfy 0 <= seed"),
        ({"probes": torch.ones(2, 4, 2)}, r"probes must be \[K, 4, 3\] with K >= 1, got shape \(2, 4, 2\)"),
        ({"probes": torch.ones(0, 4, 3)}, r"probes must be \[K, 4, 3\] with K >= 1, got shape \(0, 4, 3\)"),
        ({"probes": torch.tensor(1.0)}, r"probes must be \[K, 4, 3\] with K >= 1, got shape \(\)"),
        ({"probes": torch.ones(2, 4, 3), "method": "exact"}, "probes are for method 'hutchinson', got method 'exact'"),
    ],
)
def test_bad_values_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ff.divergence(torch.sin, torch.ones(4, 3), **kwargs)


@modes
def test_a_field_of_another_shape_is_named(mode):
    with pytest.raises(ValueError, match=r"field must return the shape of x, \(4, 3\), got shape \(4, 1\)"):
        ff.divergence(lambda x: x[:, :1], torch.ones(4, 3), mode=mode)
    with pytest.raises(TypeError, match="field must return a tensor, got tuple"):
        ff.divergence(lambda x: (x, x), torch.ones(4, 3), mode=mode)


def test_bad_types_are_named():
    with pytest.raises(TypeError, match=r"x must have a floating point dtype, got torch.int64"):
        ff.divergence(torch.sin, torch.ones(4, 3, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"x must be a tensor, got list"):
        ff.divergence(torch.sin, [1.0])
    with pytest.raises(ValueError, match=r"x must be \[B, ...\], got a scalar"):
        ff.divergence(torch.sin, torch.tensor(1.0))
    with pytest.raises(TypeError, match=r"probes must have a floating point dtype, got torch.int64"):
        ff.divergence(torch.sin, torch.ones(4, 3), probes=torch.ones(1, 4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="backend='triton' cannot serve divergence"):
        ff.divergence(torch.sin, points(4, 3), backend="triton")


def test_more_probes_than_dimensions_are_allowed_with_a_hint(caplog):
    module._hint_once.cache_clear()
    with caplog.at_level(logging.WARNING, "fastflow"):
        ff.divergence(torch.sin, points(4, 3), num_probes=3)
        assert not caplog.text
        ff.divergence(torch.sin, points(4, 3), num_probes=4)
    assert "method='exact' costs less" in caplog.text
