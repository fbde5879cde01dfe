"""Fields whose value has lost its graph or its tangent: an error, never a divergence of 0."""

import re

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import fastflow as ff
from tests.ops.divergence.problems import MODES, methods, modes, points

W = torch.randn(3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
OUTSIDE = W[[0, 1, 2, 0]]
X = points(4, 3)
T = torch.full((4,), 0.3, dtype=torch.float64)


@torch.no_grad()
def unrecorded(x: Tensor) -> Tensor:
    return 0.2 * x.sin()


def inferred(x: Tensor) -> Tensor:
    with torch.inference_mode():
        return 0.2 * x


def through_numpy(x: Tensor) -> Tensor:
    return torch.from_numpy(np.sin(x.detach().numpy()))


CUT = {
    "detached": lambda x: 0.2 * x.detach(),
    "data": lambda x: 0.2 * x.data,
    "inference mode": inferred,
    "item": lambda x: torch.full_like(x, x.sum().item()),
    "constant": torch.ones_like,
    "compared": lambda x: (x > 0).to(x.dtype),
    "parameters alone": lambda x: x.detach() @ W,
    "a parameter": lambda x: W[0].expand_as(x),
    "a value from outside": lambda x: OUTSIDE,
}
ENTRIES = {
    "divergence": lambda field, x, **k: ff.divergence(field, x, **k),
    "estimate": lambda field, x, **k: ff.divergence(field, x, **{"method": "hutch++", "num_probes": 7, **k}),
    "chunks": lambda field, x, **k: ff.divergence(field, x, num_probes=5, chunk_size=2, **k),
    "independence": lambda field, x, **k: ff.divergence(field, x, check_independence=True, **k),
    "likelihood": lambda field, x, **k: ff.log_likelihood(lambda x, t: field(x), x, num_steps=2, **k),
    "mode guidance": lambda field, x, **k: ff.mode_guidance(lambda x, t: field(x), x, T[: len(x)], **k),
    "guided sampling": lambda field, x, **k: ff.sample_ode(
        ff.sampling.mode_seeking(lambda x, t: field(x), 0.5, **k), x, num_steps=2
    ),
}
entries = pytest.mark.parametrize("entry", ENTRIES)
NO_GRAPH = r"carries no graph .*torch\.no_grad\(\), detach\(\).*inference_mode.*outside PyTorch.*`0 \* x \+ c`"
NO_TANGENT = r"carries no tangent .*detach\(\).*inference_mode.*outside PyTorch.*`0 \* x \+ c`"


@entries
@pytest.mark.parametrize("name", CUT)
@modes
def test_a_field_cut_off_from_x_raises(mode, name, entry):
    message = NO_TANGENT if mode == "forward" else NO_GRAPH
    for recorded, x in ((False, X), (True, X), (True, X.clone().requires_grad_())):
        with torch.set_grad_enabled(recorded), pytest.raises(RuntimeError, match=message):
            ENTRIES[entry](CUT[name], x, mode=mode)


@entries
@pytest.mark.parametrize("mode", ["reverse", "auto"])
def test_reverse_mode_raises_for_a_field_without_gradients(mode, entry):
    for recorded, x in ((False, X), (True, X), (True, X.clone().requires_grad_())):
        with torch.set_grad_enabled(recorded), pytest.raises(RuntimeError, match=NO_GRAPH):
            ENTRIES[entry](unrecorded, x, mode=mode)


@methods
def test_forward_mode_is_right_without_gradients(method):
    with torch.no_grad():
        r = ff.divergence(unrecorded, X, mode="forward", **method)
    want = ff.divergence(lambda x: 0.2 * x.sin(), X, **method).divergence
    torch.testing.assert_close(r.divergence, want)
    torch.testing.assert_close(ff.divergence(unrecorded, X, mode="forward", **method).divergence, want)
    linear = torch.no_grad()(lambda x, t: 0.4 * x)
    p = ff.log_likelihood(linear, X, mode="forward", method="exact", num_steps=4, solver="rk4")
    want = -0.5 * (X * np.exp(-0.4)).square().sum(1) - 1.5 * np.log(2 * np.pi) - 1.2
    torch.testing.assert_close(p.log_prob, want, rtol=1e-5, atol=1e-5)


def summed(mode: str):
    return lambda x: ff.divergence(unrecorded, x, method="exact", mode=mode).divergence.sum()


DIFFERENTIATED = {
    "tape": lambda f: f(X.clone().requires_grad_()),
    "grad": lambda f: grad(f)(X),
    "grad outside no_grad": lambda f: torch.no_grad()(grad(f))(X),
    "vmap of grad": lambda f: vmap(grad(f))(torch.stack((X, 2 * X))),
    "grad of vmap": lambda f: grad(lambda x: vmap(f)(x).sum())(torch.stack((X, 2 * X))),
    "grad of jvp": lambda f: grad(lambda x: jvp(f, (x,), (X,))[1])(X),
    "jvp of grad": lambda f: jvp(grad(f), (X,), (X.cos(),)),
    "vmap of grad of jvp": lambda f: vmap(grad(lambda x: jvp(f, (x,), (X,))[1]))(torch.stack((X, 2 * X))),
}


@modes
@pytest.mark.parametrize("name", DIFFERENTIATED)
def test_a_divergence_that_is_differentiated_needs_a_graph(name, mode):
    with pytest.raises(RuntimeError, match=NO_GRAPH):
        DIFFERENTIATED[name](summed(mode))


@entries
def test_forward_mode_raises_where_its_gradient_would_be_lost(entry):
    if entry == "mode guidance":
        with torch.no_grad(), pytest.raises(RuntimeError, match=NO_GRAPH):
            ENTRIES[entry](unrecorded, X, mode="forward")
    with pytest.raises(RuntimeError, match=NO_GRAPH):
        ENTRIES[entry](unrecorded, X.clone().requires_grad_(), mode="forward")


@modes
@pytest.mark.parametrize("transform", [lambda f: grad(lambda y: f(y).sum())(X), lambda f: jvp(f, (X,), (X,))])
def test_the_graph_and_the_tangent_of_an_outer_transform_do_not_count(transform, mode):
    with pytest.raises(RuntimeError, match=NO_TANGENT if mode == "forward" else NO_GRAPH):
        transform(lambda y: ff.divergence(lambda x: y, X, mode=mode).divergence)


def test_tangents_pass_a_field_without_gradients():
    """The tangent of a forward-mode divergence, and the gradients that an outer no_grad does not ask for."""
    f, v = summed("forward"), X.cos()
    torch.testing.assert_close(jvp(f, (X,), (v,))[1], (-0.2 * X.sin() * v).sum())
    torch.testing.assert_close(vmap(f)(torch.stack((X, 2 * X)))[1], (0.2 * (2 * X).cos()).sum())
    leaf = X.clone().requires_grad_()
    with torch.no_grad():
        torch.testing.assert_close(f(leaf), (0.2 * X.cos()).sum())


@modes
def test_a_gradient_of_a_transform_needs_no_graph_outside_it(mode):
    """The leaf requires grad on the tape, where no_grad records nothing, and in the transform, which records."""

    def f(x: Tensor) -> Tensor:
        return ff.divergence(torch.sin, x, method="exact", mode=mode).divergence.sum()

    with torch.no_grad():
        torch.testing.assert_close(grad(f)(X.clone().requires_grad_()), -X.sin())


@modes
def test_constants_that_keep_the_graph_have_divergence_zero(mode):
    for x in (X, X.clone().requires_grad_()):
        for c in (3.0, W[0]):
            r = ff.divergence(lambda x, c=c: 0 * x + c, x, method="exact", mode=mode)
            assert torch.equal(r.divergence, torch.zeros(4).double())
            g = ff.mode_guidance(lambda x, t, c=c: 0 * x + c, x, T, mode=mode)
            assert torch.equal(g, torch.zeros_like(X))


def test_values_from_numpy_raise():
    for recorded in (False, True):
        for mode in MODES:
            with torch.set_grad_enabled(recorded), pytest.raises(RuntimeError, match=r"no graph|storage"):
                ff.divergence(through_numpy, X, mode=mode)  # under a transform NumPy itself cannot read x


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("name", ["detached", "a parameter", "no gradients"])
def test_compiled_code_raises_too(name, mode):
    field = {**CUT, "no gradients": unrecorded}[name]
    x = X.clone().requires_grad_()
    torch.compiler.reset()
    compiled = torch.compile(lambda x: ff.divergence(field, x, mode=mode).divergence, backend="aot_eager")
    with pytest.raises(Exception, match=re.escape("0 * x + c")):
        compiled(x)
