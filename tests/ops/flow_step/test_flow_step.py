"""The public flow-step ops: values, every derivative in float64, the kernels against the reference in every mode."""

import functools

import pytest
import torch

import fastflow as ff
from fastflow.ops.flow_step import custom_ops
from tests.compare import tensors
from tests.modes import MODES, Problem

P = ff.paths
PATHS = [P.CondOT(), P.SigmaMin(0.1), P.Cosine(), P.VP(), P.Tube(0.3), P.SchrodingerBridge(0.7)]
DRAWN = [P.CondOT(), P.SchrodingerBridge(0.7)]  # without a third term and with one
NOISE = ff.GaussianNoise(4, offset=2)
REDUCTIONS = ("mean", "sum", "none")


def operands(dtype=torch.float64, shape=(3, 2, 2), device="cpu"):
    """pred, x0, x1, noise [B, ...], then t and weight [B], all wanting gradients."""
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(4)]
    t = 0.1 + 0.8 * torch.rand(shape[0], generator=generator, dtype=torch.float64)
    weight = torch.rand(shape[0], generator=generator, dtype=torch.float64)
    return tuple(x.to(device, dtype).requires_grad_() for x in (*xs, t, weight))


def interpolate(path, **options):
    return lambda pred, x0, x1, z, t, weight: ff.interpolate(x0, x1, t, path=path, noise=z, **options)


def loss(path, reduction="mean", **options):
    def call(pred, x0, x1, z, t, weight):
        return ff.flow_matching_loss(pred, x0, x1, t, path=path, noise=z, weight=weight, reduction=reduction, **options)

    return call


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_values_are_the_definition(path):
    pred, x0, x1, z, t, weight = operands()
    c = [v.view(-1, 1, 1) for v in path.coefficients(t)]
    xt, u = c[0] * x1 + c[1] * x0 + c[2] * z, c[3] * x1 + c[4] * x0 + c[5] * z
    torch.testing.assert_close(ff.interpolate(x0, x1, t, path=path, noise=z), xt)
    torch.testing.assert_close(ff.target_velocity(x0, x1, t, path=path, noise=z), u)
    error = weight.view(-1, 1, 1) * (pred - u).square()
    for reduction, expected in (("mean", error.mean()), ("sum", error.sum()), ("none", error.mean((1, 2)))):
        got = ff.flow_matching_loss(pred, x0, x1, t, path=path, noise=z, weight=weight, reduction=reduction)
        torch.testing.assert_close(got, expected)
    sample = path.sample(x0, x1, t, noise=z)
    torch.testing.assert_close(sample.xt, xt)
    torch.testing.assert_close(sample.velocity, u)


def test_unweighted_mean_is_mse_loss():
    pred, x0, x1, _, t, _ = operands()
    expected = torch.nn.functional.mse_loss(pred, x1 - x0)
    torch.testing.assert_close(ff.flow_matching_loss(pred, x0, x1, t, path=P.CondOT()), expected)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_gradcheck_interpolate(path):
    checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(interpolate(path), operands(shape=(2, 2)), **checks)
    assert torch.autograd.gradgradcheck(interpolate(path), operands(shape=(2, 2)), check_fwd_over_rev=True)


@pytest.mark.parametrize(
    ("path", "reduction"), [*((path, "none") for path in PATHS), (PATHS[-1], "mean"), (PATHS[-1], "sum")], ids=str
)
def test_gradcheck_loss(path, reduction):
    check_loss(loss(path, reduction), operands(shape=(2, 2)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradcheck_unweighted_loss(reduction):
    """Without weights the reference reduces in one call."""

    def call(pred, x0, x1, z, t):
        return ff.flow_matching_loss(pred, x0, x1, t, path=PATHS[-1], noise=z, reduction=reduction)

    check_loss(call, operands(shape=(2, 2))[:-1])


def check_loss(call, inputs):
    checks = {"check_forward_ad": True, "check_batched_grad": True, "check_batched_forward_grad": True}
    assert torch.autograd.gradcheck(call, inputs, **checks)
    checks = {"check_batched_grad": True, "check_fwd_over_rev": True, "check_rev_over_rev": True}
    assert torch.autograd.gradgradcheck(call, inputs, **checks)


def test_gradcheck_with_drawn_noise():
    pred, _, x1, _, t, weight = operands(shape=(2, 3))
    x0, z = ff.GaussianNoise(1), ff.GaussianNoise(2)

    def call(pred, x1, t, weight):
        path = P.SchrodingerBridge(0.7)
        xt = ff.interpolate(x0, x1, t, path=path, noise=z)
        return xt, ff.flow_matching_loss(pred, x0, x1, t, path=path, noise=z, weight=weight)

    assert torch.autograd.gradcheck(call, (pred, x1, t, weight), check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(call, (pred, x1, t, weight))


def test_drawn_noise_is_the_materialised_noise():
    pred, _, x1, _, t, _ = operands()
    path, z, x0 = P.SchrodingerBridge(0.7), ff.GaussianNoise(3), NOISE
    tensors = [n.materialize(x1.shape, dtype=x1.dtype) for n in (x0, z)]
    for given_x0, given_z in ((x0, tensors[1]), (tensors[0], z), (x0, z)):
        assert torch.equal(
            ff.interpolate(given_x0, x1, t, path=path, noise=given_z),
            ff.interpolate(tensors[0], x1, t, path=path, noise=tensors[1]),
        )
        assert torch.equal(
            ff.flow_matching_loss(pred, given_x0, x1, t, path=path, noise=given_z),
            ff.flow_matching_loss(pred, tensors[0], x1, t, path=path, noise=tensors[1]),
        )


EVERY_KIND = (
    *("forward", "forward_mode", "reverse_mode", "reverse_over_forward", "forward_over_reverse"),
    *("reverse_over_reverse", "vmap_of_jvp", "vmap_of_grad", "grad_of_vmap"),
)


def problem(call, inputs):
    x = tuple(y.detach() for y in inputs)
    t = tuple(0.5 + torch.cos(3 * y) for y in x)
    ts, xs = [torch.stack([y, -2 * y]) for y in t], [torch.stack([y, y + 0.01]) for y in x]
    shape = call(*x).shape
    w = torch.linspace(0.5, 1.5, shape.numel(), dtype=x[0].dtype, device=x[0].device).view(shape)
    return Problem(x, t, ts, xs, w, torch.stack([w, -w]), square=0.0)  # the flow-matching loss is quadratic itself


def agree(call_with, names, tolerance=3e-6, device="cpu"):
    """Compare the kernels in float32 with the reference in float64 in these modes."""
    single = operands(torch.float32, device=device)
    double = [y.double() for y in single]
    kernels, reference = call_with("triton"), call_with("reference")
    for name in names:
        got = tensors(MODES[name](kernels, problem(kernels, single)))
        want = tensors(MODES[name](reference, problem(reference, double)))
        for i, (a, b) in enumerate(zip(got, want, strict=True)):
            error = (a.double() - b).abs().max() / b.abs().max().clamp(min=1.0)
            assert error <= tolerance, f"{name}[{i}]: {error:.1e}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "drawn"), [*((path, False) for path in PATHS), *((path, True) for path in DRAWN)], ids=str
)
def test_kernels_match_float64_in_every_kind_of_mode(path, drawn, device):
    pytest.importorskip("triton")

    def with_noise(make):
        def call_with(backend):
            call = make(backend)
            if not drawn:
                return call
            return lambda pred, x0, x1, z, t, weight: call(pred, NOISE, x1, ff.GaussianNoise(7), t, weight)

        return call_with

    agree(with_noise(lambda backend: interpolate(path, backend=backend)), EVERY_KIND, device=device)
    agree(with_noise(lambda backend: loss(path, "none", backend=backend)), EVERY_KIND, device=device)


@pytest.mark.parametrize("name", MODES)
def test_kernels_match_float64_in_every_mode(name, device):
    pytest.importorskip("triton")
    agree(lambda backend: loss(P.SchrodingerBridge(0.7), "none", backend=backend), [name], device=device)


@pytest.mark.parametrize("backend", ["reference", "triton"])
def test_raw_forward_ad_with_backward_through_the_tangent(backend, device):
    from torch.autograd import forward_ad

    pred, x0, x1, z, t, weight = operands(torch.float32, device=device)
    path = P.Cosine()
    with forward_ad.dual_level():
        value = loss(path, backend=backend)(forward_ad.make_dual(pred, torch.ones_like(pred)), x0, x1, z, t, weight)
        tangent = forward_ad.unpack_dual(value).tangent
        (got,) = torch.autograd.grad(tangent, pred)
    expected = (2 * weight / pred.numel()).view(-1, 1, 1).expand_as(pred)  # d/dpred sum 2 w (pred - u) / N
    torch.testing.assert_close(got, expected)


def traced():
    """A backend that runs graphs as they were traced, but none with a zero tensor that has no memory to read."""
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    def compiler(graph, inputs):
        assert "zerotensor" not in graph.code
        return make_boxed_func(graph.forward)

    return aot_autograd(fw_compiler=compiler, bw_compiler=compiler)


@pytest.mark.slow
def test_compiles_without_a_graph_break_in_every_mode(device):
    """Zero tensors are looked for in the traced graphs, which Inductor would read at address 0."""
    pred, _, x1, _, t, weight = operands(torch.float32, device=device)
    path = P.SchrodingerBridge(0.7)
    ones = torch.ones_like(pred), torch.ones_like(x1), torch.ones_like(t)

    def step(backend, pred, x1, t, seed=3):
        x0, z = ff.GaussianNoise(seed, 1), ff.GaussianNoise(seed, 2)
        xt = ff.interpolate(x0, x1, t, path=path, noise=z, backend=backend)
        return ff.flow_matching_loss(pred * xt, x0, x1, t, path=path, noise=z, weight=weight, backend=backend)

    def values(pred, x1, t, seed=3):
        return step("reference", pred, x1, t, seed), step("triton", pred, x1, t, seed)

    def dual(backend, pred, x1, t):
        return torch.func.jvp(functools.partial(step, backend), (pred, x1, t), ones)

    def both_duals(pred, x1, t):
        return *dual("reference", pred, x1, t), *dual("triton", pred, x1, t)

    def transformed(pred, x1, t):  # not beside a jvp in one graph: Dynamo 2.13 loses the forward-mode level
        results = []
        for backend in ("reference", "triton"):
            call = functools.partial(step, backend)
            results.append(torch.func.grad(call)(pred, x1, t).square().sum())
            results.append(torch.vmap(lambda p, call=call: call(p, x1, t))(torch.stack([pred, 2 * pred])).sum())
        return tuple(results)

    def agree_compiled(function, *arguments, **options):
        torch._dynamo.reset()
        compiled = torch.compile(function, fullgraph=True, **options)
        for more in arguments:
            got, expected = compiled(pred, x1, t, *more), function(pred, x1, t, *more)
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)
            weights = torch.tensor([1.0, 0.7, 0.4, 0.3], device=device)[: len(got)].unbind()
            first, second = (torch.autograd.grad(ys, (pred, x1, t), weights) for ys in (got, expected))
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)

    agree_compiled(values, (3,), (4,), backend=traced())  # the second seed is a symbol
    for backend in ("reference", "triton"):
        agree_compiled(functools.partial(dual, backend), (), backend=traced())
    agree_compiled(transformed, (), backend=traced())  # PyTorch's own ops, which are not for Inductor to prove here
    agree_compiled(both_duals, (), backend="inductor")


@pytest.mark.slow
@pytest.mark.parametrize("drawn", [False, True])
def test_the_custom_ops_are_well_formed(drawn, device):
    pytest.importorskip("triton")
    pred, x0, x1, _, t, _ = operands(torch.float32, device=device)
    c1, c0 = (c.detach().float().requires_grad_() for c in (t, 1 - t))
    terms = (x1, None if drawn else x0, None, c1, c0, torch.tensor(0.0), [1, 2, 3] if drawn else [], [])
    torch.library.opcheck(custom_ops.affine, (*terms, torch.float32))
    torch.library.opcheck(custom_ops.squared_error, (pred, *terms))
    detached = [x.detach() if isinstance(x, torch.Tensor) else x for x in terms]
    torch.library.opcheck(custom_ops.squared_error_grad, (torch.ones(3, device=device), pred.detach(), *detached))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_are_accumulated_in_fp32_and_rounded_once(dtype):
    pred, x0, x1, _, t, _ = (x.detach() for x in operands(dtype, shape=(4, 300)))
    t = t.float()
    xt = ff.interpolate(x0, x1, t, path=P.Cosine())
    assert xt.dtype == dtype
    exact = ff.interpolate(x0.double(), x1.double(), t, path=P.Cosine())
    assert torch.equal(xt, exact.to(dtype)) or (xt.double() - exact).abs().max() <= torch.finfo(dtype).eps * 2
    value = ff.flow_matching_loss(pred, x0, x1, t, path=P.Cosine())
    assert value.dtype == torch.float32
    torch.testing.assert_close(
        value.double(),
        ff.flow_matching_loss(pred.double(), x0.double(), x1.double(), t, path=P.Cosine()),
        rtol=1e-5,
        atol=0,
    )


def test_dtypes():
    pred, x0, x1, _, t, _ = (x.detach() for x in operands(torch.float32))
    path = P.CondOT()
    assert ff.interpolate(x0, x1, t, path=path, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert ff.interpolate(x0, x1.half(), t, path=path).dtype == torch.float32
    assert ff.interpolate(NOISE, x1.half(), t, path=path).dtype == torch.float16
    assert ff.interpolate(NOISE, x1.double(), t, path=path).dtype == torch.float64
    mixed = pred.bfloat16().requires_grad_()  # the usual case: a prediction under autocast beside fp32 data
    value = ff.flow_matching_loss(mixed, x0, x1, t, path=path)
    value.backward()
    assert value.dtype == torch.float32
    assert mixed.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("backend", ["reference", "triton"])
@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0,)], ids=str)
def test_an_empty_batch_gives_an_empty_result_and_a_zero_loss(shape, backend, device):
    x = torch.zeros(shape, device=device)
    t = torch.full(shape[:1], 0.5, device=device)
    assert ff.interpolate(x, x, t, path=P.CondOT(), backend=backend).shape == shape
    for reduction in REDUCTIONS:
        pred = x.clone().requires_grad_()
        value = ff.flow_matching_loss(pred, NOISE, x, t, path=P.CondOT(), reduction=reduction, backend=backend)
        value.sum().backward()
        assert value.sum() == 0
        assert pred.grad.shape == shape


def test_a_scalar_time_serves_the_whole_batch():
    _pred, x0, x1, _, _, _ = operands()
    batch = torch.full((3,), 0.3, dtype=torch.float64)
    scalar = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    for t in (scalar, 0.3):
        torch.testing.assert_close(
            ff.interpolate(x0, x1, t, path=P.Cosine()),
            ff.interpolate(x0, x1, batch, path=P.Cosine()),
            rtol=1e-6,
            atol=1e-6,
        )
    ff.interpolate(x0, x1, scalar, path=P.Cosine()).sum().backward()
    assert scalar.grad.shape == ()


def test_a_path_of_your_own_is_two_functions_and_a_domain():
    class Quadratic:
        domain = (0.0, 1.0)

        def position(self, t):
            return t * t, 1 - t * t, 0.0

        def velocity(self, t):
            return 2 * t, -2 * t, 0.0

    _, x0, x1, _, t, _ = operands()
    torch.testing.assert_close(
        ff.interpolate(x0, x1, t, path=Quadratic()), ff.interpolate(x0, x1, t, path=P.Polynomial(2))
    )


X = torch.zeros(2, 3)
T = torch.tensor([0.1, 0.9])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ff.interpolate(X, X[0], T, path=P.CondOT()), ValueError, r"x0 must have the shape of x1, \(3,\)"),
        (lambda: ff.interpolate(X, X.long(), T, path=P.CondOT()), TypeError, "x1 must have a floating point dtype"),
        (lambda: ff.interpolate(X.int(), X, T, path=P.CondOT()), TypeError, "x0 must have a floating point dtype"),
        (lambda: ff.interpolate(None, X, T, path=P.CondOT()), TypeError, "x0 must be a tensor, got NoneType"),
        (lambda: ff.interpolate(X, torch.tensor(1.0), T, path=P.CondOT()), ValueError, r"x1 must be \[B, ...\]"),
        (
            lambda: ff.interpolate(X.to("meta"), X, T, path=P.CondOT()),
            ValueError,
            "x0 must be on the device of x1, cpu",
        ),
        (lambda: ff.interpolate(X, X, T[:1], path=P.CondOT()), ValueError, r"t must be a scalar or \[B\] with B = 2"),
        (lambda: ff.interpolate(X, X, T.to("meta"), path=P.CondOT()), ValueError, "t must be on the device of x1"),
        (
            lambda: ff.interpolate(X, X, T + 1, path=P.CondOT()),
            ValueError,
            r"t must lie in the domain \[0.0, 1.0\] of CondOT",
        ),
        (
            lambda: ff.interpolate(X, X, T, path=P.Tube(0.1)),
            ValueError,
            "noise must be a tensor or GaussianNoise",
        ),
        (
            lambda: ff.interpolate(X, X, T, path=P.CondOT(), dtype=torch.int32),
            TypeError,
            "dtype must be a floating point",
        ),
        (lambda: ff.interpolate(X, X, T, path=P.CondOT(), backend="cuda"), ValueError, "backend must be one of 'auto'"),
        (
            lambda: ff.interpolate(X, X.double(), T, path=P.CondOT(), backend="triton"),
            ValueError,
            "backend='triton' cannot serve flow_step: the kernels take float16, bfloat16 and float32, not float64",
        ),
        (lambda: ff.target_velocity(X, X, T, path=P.SchrodingerBridge(0.1)), ValueError, "noise must be"),
        (lambda: ff.flow_matching_loss(X[:1], X, X, T, path=P.CondOT()), ValueError, "pred must have the shape of x1"),
        (lambda: ff.flow_matching_loss(X.long(), X, X, T, path=P.CondOT()), TypeError, "pred must have a floating"),
        (
            lambda: ff.flow_matching_loss(X, X, X, T, path=P.CondOT(), reduction="avg"),
            ValueError,
            "reduction must be one of 'mean', 'sum', 'none', got 'avg'",
        ),
        (
            lambda: ff.flow_matching_loss(X, X, X, T, path=P.CondOT(), weight=X),
            ValueError,
            r"weight must be \[B\] with B = 2",
        ),
        (
            lambda: ff.flow_matching_loss(X, X, X, T, path=P.CondOT(), weight=T.long()),
            TypeError,
            "weight must have a floating",
        ),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("mapped", range(3))
def test_vmap_over_one_argument(mapped):
    x0, x1, t = torch.randn(4, 3), torch.randn(4, 3), torch.rand(4)
    pred, path = torch.randn(4, 3), ff.paths.Cosine()
    several = [x.expand(2, *x.shape) * torch.tensor([1.0, 0.5]).view(2, *(1,) * x.ndim) for x in (x0, x1, t)]
    for function in (
        lambda x0, x1, t: ff.interpolate(x0, x1, t, path=path),
        lambda x0, x1, t: ff.flow_matching_loss(pred, x0, x1, t, path=path),
    ):
        arguments = [x if i == mapped else x[0] for i, x in enumerate(several)]
        got = torch.vmap(function, tuple(0 if i == mapped else None for i in range(3)))(*arguments)
        want = [function(*(x[k] if i == mapped else x[0] for i, x in enumerate(several))) for k in range(2)]
        torch.testing.assert_close(got, torch.stack(want))


def test_a_time_outside_the_domain_is_caught_under_transforms_too():
    def value(t):
        return ff.interpolate(X, X, t, path=P.VP()).sum()

    for transformed in (torch.func.grad(value), lambda t: torch.func.jvp(value, (t,), (t,)), torch.vmap(value)):
        with pytest.raises(ValueError, match="t must lie in the domain"):
            transformed(torch.tensor([[0.5, 1.0], [0.1, 0.2]]) if transformed.__name__ == "wrapped" else T + 0.1)
