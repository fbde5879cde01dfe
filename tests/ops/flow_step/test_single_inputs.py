"""Each input of the flow step differentiated alone, in every nesting, against formulas written out in float64."""

import itertools

import pytest
import torch
from torch.func import grad, jvp, vjp, vmap

import fastflow as ff

PATHS = [ff.paths.CondOT(), ff.paths.SchrodingerBridge(0.7), ff.paths.VP()]
BACKENDS = ["reference", "triton"]
B, SHAPE = 3, (3, 2, 2)
NAMES = ("pred", "x0", "x1", "z", "t", "weight")
X0, Z = ff.GaussianNoise(1, 2, 3), ff.GaussianNoise(1, 3, 1)


def operands(dtype, device="cpu"):
    generator = torch.Generator().manual_seed(2)
    xs = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(4)]
    t = 0.1 + 0.8 * torch.rand(B, generator=generator, dtype=torch.float64)
    weight = 0.5 + torch.rand(B, generator=generator, dtype=torch.float64)
    return {name: x.to(device, dtype) for name, x in zip(NAMES, (*xs, t, weight))}


def combine(path, a, velocity):
    """``c1 x1 + c0 x0 + cz z``, written out."""
    factors = path.velocity(a["t"]) if velocity else path.position(a["t"])
    rows = [c.view(-1, 1, 1) if isinstance(c, torch.Tensor) else c for c in factors]
    return rows[0] * a["x1"] + rows[1] * a["x0"] + rows[2] * a["z"]


def plain_loss(path, a, weighted, reduction):
    error = (a["pred"] - combine(path, a, True)) * (a["pred"] - combine(path, a, True))
    error = error.sum((1, 2)) * (a["weight"] if weighted else 1.0)
    return {"mean": error.sum() / 12, "sum": error.sum(), "none": error / 4}[reduction]


def our_loss(path, a, weighted, reduction, backend):
    return ff.flow_matching_loss(
        a["pred"], a["x0"], a["x1"], a["t"],
        path=path, noise=a["z"], weight=a["weight"] if weighted else None, reduction=reduction, backend=backend,
    )  # fmt: skip


def nestings(f, x, v, short=False):
    """Everything that differentiates a function of one tensor, twice at most; f returns a scalar or a tensor."""

    def scalar(x):
        y = f(x)
        return (y * torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype, device=y.device).view(y.shape)).sum()

    several = torch.stack([x, x + 0.01])
    yield "jvp", jvp(f, (x,), (v,))
    yield "jvp of grad", jvp(grad(scalar), (x,), (v,))
    yield "grad of jvp", grad(lambda x: jvp(scalar, (x,), (v,))[1])(x)
    yield "vmap of grad", vmap(grad(scalar))(several)
    if short:
        return
    yield "grad of grad", grad(lambda x: (grad(scalar)(x) * v).sum())(x)
    yield "vmap", vmap(f)(several)
    yield "vmap of jvp", vmap(lambda x: jvp(f, (x,), (v,)))(several)
    yield "vmap over tangents", vmap(lambda v: jvp(f, (x,), (v,))[1])(several)
    yield "vmap of jvp of grad", vmap(lambda v: jvp(grad(scalar), (x,), (v,))[1])(several)
    yield "vmap of vjp", vmap(vjp(f, x)[1])(torch.stack([torch.ones_like(f(x)), f(x).detach()]))
    yield "jvp of vmap", jvp(vmap(f), (several,), (several.cos(),))
    yield "grad of vmap", grad(lambda x: vmap(scalar)(x).square().sum())(several)


def flat(tree):
    return [tree] if isinstance(tree, torch.Tensor) else [leaf for branch in tree for leaf in flat(branch)]


def compare(ours, plain, name, device, drawn=(), short=False):
    """ours, plain: functions of all operands; drawn: names of those that ours draws in the kernel."""
    single, double = operands(torch.float32, device), operands(torch.float64, device)
    for key, noise in drawn:
        double[key] = noise.materialize(SHAPE, dtype=torch.float64, device=device, backend="reference")
        single[key] = noise
    dtype = single[name].dtype

    def of_one(function, a):
        return lambda x: function({**a, name: x})

    got = nestings(of_one(ours, single), single[name], torch.cos(3 * single[name]), short)
    want = nestings(of_one(plain, double), double[name], torch.cos(3 * single[name].double()), short)
    for (nesting, a), (_, b) in zip(got, want, strict=True):
        for x, y in zip(flat(a), flat(b), strict=True):
            assert x.dtype == dtype, (name, nesting, x.dtype)
            error = (x.double() - y).abs().max() / y.abs().max().clamp(min=1.0)
            assert error <= 2e-5, f"{name}, {nesting}: {error:.1e}"


def differentiable(path, weighted):
    names = [name for name in NAMES if (name != "weight" or weighted)]
    return names if isinstance(path, ff.paths.SchrodingerBridge) else [name for name in names if name != "z"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_loss(weighted, reduction, backend, device):
    path = PATHS[1]
    for name in differentiable(path, weighted):
        compare(
            lambda a: our_loss(path, a, weighted, reduction, backend),
            lambda a: plain_loss(path, a, weighted, reduction),
            name,
            device,
            short=weighted or reduction == "sum",
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", [PATHS[0], PATHS[2]], ids=repr)
def test_mean_loss_of_other_paths(path, backend, device):
    for name in differentiable(path, weighted=False):
        compare(
            lambda a: our_loss(path, a, False, "mean", backend),
            lambda a: plain_loss(path, a, False, "mean"),
            name,
            device,
            short=True,
        )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("path", [PATHS[0], PATHS[1]], ids=repr)
def test_loss_with_drawn_noise(path, backend, device):
    drawn = (("x0", X0), ("z", Z))
    for name in ("pred", "x1", "t"):
        compare(
            lambda a: our_loss(path, a, False, "mean", backend),
            lambda a: plain_loss(path, a, False, "mean"),
            name,
            device,
            drawn,
        )


@pytest.mark.parametrize("op", ["interpolate reference", "interpolate triton", "target_velocity"])
@pytest.mark.parametrize("path", PATHS[:2], ids=repr)
def test_position_and_velocity(path, op, device):
    op, _, backend = op.partition(" ")
    options = {"backend": backend} if backend else {}
    for name, drawn in itertools.product(differentiable(path, weighted=True)[1:-1], [(), (("x0", X0), ("z", Z))]):
        if name in ("x0", "z") and drawn:
            continue
        compare(
            lambda a: getattr(ff, op)(a["x0"], a["x1"], a["t"], path=path, noise=a["z"], **options),
            lambda a: combine(path, a, velocity=op == "target_velocity"),
            name,
            device,
            drawn,
            short=True,
        )


def test_hessian_vector_product_of_the_prediction():
    """The mean of squares over N elements has the Hessian-vector product 2 v / N."""
    pred, x0, x1, v = torch.randn(4, 3, 5)
    t = torch.rand(3)
    gradient = grad(lambda p: ff.flow_matching_loss(p, x0, x1, t, path=ff.paths.CondOT()))
    torch.testing.assert_close(jvp(gradient, (pred,), (v,))[1], 2 * v / 15)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("pred", "x1", "t"),
    [
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float32, torch.float32),
        (torch.float32, torch.float32, torch.float64),
        (torch.float32, torch.float32, torch.float16),
        (torch.float16, torch.float16, torch.bfloat16),
        (torch.float64, torch.float32, torch.float32),
    ],
    ids=str,
)
def test_tangents_and_gradients_have_the_dtype_of_their_primals(pred, x1, t, backend, device):
    if backend == "triton" and ({pred, x1} & {torch.float64} or (pred == torch.bfloat16 and device.type == "cpu")):
        pytest.skip("the kernels do not take this dtype here")
    a = operands(torch.float64, device)
    dtypes = {"pred": pred, "x0": x1, "x1": x1, "z": x1, "t": t, "weight": torch.float32}
    a = {name: x.to(dtypes[name]) for name, x in a.items()}
    path = PATHS[1]
    calls = [
        *(
            lambda a, w=w, r=r: our_loss(path, a, w, r, backend)
            for w, r in ((False, "mean"), (True, "mean"), (False, "none"))
        ),
        lambda a: ff.interpolate(a["x0"], a["x1"], a["t"], path=path, noise=a["z"], backend=backend),
        lambda a: ff.target_velocity(a["x0"], a["x1"], a["t"], path=path, noise=a["z"]),
    ]
    for call, name in itertools.product(calls, NAMES):
        x = a[name]
        out, tangent = jvp(lambda x, call=call, name=name: call({**a, name: x}), (x,), (torch.ones_like(x),))
        assert tangent.dtype == out.dtype
        (gradient, second) = jvp(
            grad(lambda x, call=call, name=name: call({**a, name: x}).float().sum()), (x,), (torch.ones_like(x),)
        )
        assert gradient.dtype == second.dtype == x.dtype


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_tangents_have_the_dtype_of_their_primals(backend, device):
    torch._dynamo.reset()
    a = operands(torch.float32, device)

    def step(pred, t):
        def loss(pred, t):
            return our_loss(PATHS[1], {**a, "pred": pred, "t": t}, False, "mean", backend)

        return jvp(loss, (pred, t), (torch.ones_like(pred), torch.ones_like(t)))

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for got, expected in zip(compiled(a["pred"], a["t"]), step(a["pred"], a["t"]), strict=True):
        assert got.dtype == expected.dtype == torch.float32
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("path", PATHS, ids=repr)
def test_tangents_of_coefficients_at_a_scalar_time(path):
    t = torch.tensor(0.3)
    c, rates = jvp(path.coefficients, (t,), (torch.ones_like(t),))
    assert {x.dtype for x in (*c, *rates)} == {torch.float32}
    assert all(x.shape == () for x in (*c, *rates))
    torch.testing.assert_close(rates[:3], c[3:])
