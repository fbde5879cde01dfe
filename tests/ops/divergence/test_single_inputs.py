"""Divergence, likelihood and guidance in every transform, each input differentiated alone, against plain formulas."""

import math

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import fastflow as ff
from tests.ops.divergence.problems import matrix, points

INPUTS = {"x": points(2, 2), "W": matrix(2), "probes": points(5, 2, 2)[3:]}
T = torch.tensor([0.3, 0.6], dtype=torch.float64)
STEPS = 2


def field(x: Tensor, W: Tensor) -> Tensor:
    return torch.tanh(x @ W.T)


def form(x: Tensor, W: Tensor, probes: Tensor) -> Tensor:
    """Return ``mean_k ε_kᵀ J ε_k`` with ``J = diag(1 − tanh²(W x)) W`` written out."""
    J = (1 - field(x, W).square())[..., None] * W
    return torch.einsum("kbi,bij,kbj->b", probes, J, probes) / len(probes)


def likelihood(x: Tensor, W: Tensor, probes: Tensor) -> Tensor:
    """Return the log-density after backward Euler steps of 1 / STEPS, written out."""
    change = 0.0
    for _ in range(STEPS):
        change = change - form(x, W, probes) / STEPS
        x = x - field(x, W) / STEPS
    return -0.5 * x.square().sum(1) - math.log(2 * math.pi) + change


ENTRIES = {
    "divergence": (
        lambda x, W, probes, mode: ff.divergence(lambda y: field(y, W), x, probes=probes, mode=mode).divergence,
        form,
    ),
    "log_likelihood": (
        lambda x, W, probes, mode: (
            ff.log_likelihood(
                lambda y, t: field(y, W), x, probes=probes, mode=mode, num_steps=STEPS, solver="euler"
            ).log_prob
        ),
        likelihood,
    ),
    "mode_guidance": (
        lambda x, W, probes, mode: ff.mode_guidance(lambda y, t: field(y, W), x, T, probes=probes, mode=mode),
        lambda x, W, probes: grad(lambda x: -form(x, W, probes).sum())(x),
    ),
}
MODES = {
    "forward": lambda f, z, v: f(z),
    "jvp": lambda f, z, v: jvp(f, (z,), (v,)),
    "grad": lambda f, z, v: grad(lambda z: f(z).square().sum())(z),
    "tape": lambda f, z, v: torch.autograd.grad(f(leaf := z.clone().requires_grad_()).square().sum(), leaf),
    "jvp of grad": lambda f, z, v: jvp(grad(lambda z: f(z).square().sum()), (z,), (v,)),
    "grad of jvp": lambda f, z, v: grad(lambda z: jvp(f, (z,), (v,))[1].square().sum())(z),
    "grad of grad": lambda f, z, v: grad(lambda z: (grad(lambda z: f(z).square().sum())(z) * v).sum())(z),
    "hessian": lambda f, z, v: hessian(lambda z: f(z).sum())(z),
    "jacobians": lambda f, z, v: (jacrev(f)(z), jacfwd(f)(z)),
    "vmap": lambda f, z, v: vmap(f)(torch.stack((z, v))),
    "vmap of jvp": lambda f, z, v: vmap(lambda v: jvp(f, (z,), (v,)))(torch.stack((v, z))),
    "vmap of jvp of grad": lambda f, z, v: vmap(lambda z: jvp(grad(lambda z: f(z).square().sum()), (z,), (v,)))(
        torch.stack((z, v))
    ),
    "grad of vmap": lambda f, z, v: grad(lambda zs: vmap(f)(zs).square().sum())(torch.stack((z, v))),
}


@pytest.mark.parametrize("mode", ["forward", "reverse"])
@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_each_input_alone_in_every_transform(entry, name, mode):
    ours, plain = ENTRIES[entry]
    z, v = INPUTS[name], INPUTS[name].cos()
    for transform, take in MODES.items():
        got = take(lambda z: ours(**{**INPUTS, name: z}, mode=mode), z, v)
        want = take(lambda z: plain(**{**INPUTS, name: z}), z, v)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9, msg=lambda text, m=transform: f"{m}: {text}")
