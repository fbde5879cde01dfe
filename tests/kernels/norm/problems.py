"""Operands of the norms, and float64 results of the reference for them."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fastflow.kernels.norm import reference
from tests.compare import assert_close

# which operands and which tangents are given; shared or per token
FULL = ("x", "scale", "shift")
SUBSETS = {
    "all": (FULL, FULL),
    "x alone": (("x",), ("x",)),
    "no tangent of x": (FULL, ("scale", "shift")),
    "tangent of x": (FULL, ("x",)),
    "tangent of scale": (("x", "scale"), ("scale",)),
    "tangent of shift": (("x", "shift"), ("shift",)),
    "weights": (("x", "scale"), ("x", "scale")),
}


@dataclass
class Problem:
    """primals, tangents: x, scale and shift, None if absent; g and h: cotangents of out ``[G, M, D]`` and of t_out."""

    primals: list[Tensor | None]
    tangents: list[Tensor | None]
    g: Tensor | None
    h: Tensor
    centred: bool = True
    unit: bool = True
    eps: float = 1e-5

    @property
    def kinds(self):
        return {"centred": self.centred, "unit": self.unit}

    @property
    def numbers(self):
        return {"eps": self.eps, **self.kinds, "dtype": self.primals[0].dtype}

    @property
    def given(self):
        return [y for y in (*self.primals, *self.tangents) if y is not None]

    @property
    def wanted(self):
        return [y is not None for y in self.primals], [y is not None for y in self.tangents]

    def exact(self):
        """out, t_out and the gradients of what is given, in float64 by autograd."""
        leaves = [None if y is None else y.double().requires_grad_() for y in (*self.primals, *self.tangents)]
        out, t_out = reference.dual_forward(*leaves, **{**self.numbers, "dtype": torch.float64})
        loss = (t_out * self.h).sum() + (0 if self.g is None else (out * self.g).sum())
        given = [y for y in leaves if y is not None]
        return out, t_out, torch.autograd.grad(loss, given, materialize_grads=True)


def draw(G, M, D, num=1, subset="all", per_token=(), dtype=torch.float32, layout="contiguous", g=True, **kinds):
    """A problem with entries about 1; per_token: scale, shift, or both."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape):
        y = torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)
        return strided(y, layout)

    shapes = {"x": (G, M, D), **{name: (G, M if name in per_token else 1, D) for name in ("scale", "shift")}}
    present, moving = SUBSETS[subset]
    primals = [randn(*shapes[name]) if name in present else None for name in FULL]
    primals[0] = primals[0] + 0.5 if D > 1 else primals[0]
    tangents = [randn(num, *shapes[name]) if name in moving else None for name in FULL]
    return Problem(primals, tangents, randn(G, M, D) if g else None, randn(num, G, M, D), **kinds)


def strided(y, layout):
    """The same values behind other strides, or one row for all where expanded."""
    if layout == "expanded":
        return y[..., :1, :].expand_as(y)
    if layout == "slice of rows":
        wide = torch.full((*y.shape[:-1], 3 * y.shape[-1]), torch.nan, dtype=y.dtype)
        wide[..., y.shape[-1] : 2 * y.shape[-1]] = y
        return wide[..., y.shape[-1] : 2 * y.shape[-1]]
    return y.mT.contiguous().mT if layout == "transposed" else y


def check(problem, forward, dual_forward, backward, dual_backward, tolerance, alone=True):
    """Compare the four functions of an implementation with the reference; alone: ask for each gradient alone, too."""
    p = problem
    out, t_out, grads = p.exact()
    results = dual_forward(*p.primals, *p.tangents, **p.numbers)
    plain = forward(*p.primals, **p.numbers)
    for y in (results[0], plain[0]):
        assert (y.dtype, y.is_contiguous()) == (p.primals[0].dtype, True)
        assert_close(y, out, tolerance, "out")
    for a, b in zip(plain[1:], results[2:4], strict=True):
        torch.testing.assert_close(a, b)
    assert_close(results[1], t_out, tolerance, "t_out")
    _, _, mean, rstd, _, t_rstd = results
    groups = dual_backward(p.g, p.h, *p.primals, *p.tangents, mean, rstd, t_rstd, **p.kinds, **_wants(*p.wanted))
    actual = [y for group in groups for y in group if y is not None]
    for i, (y, exact, like) in enumerate(zip(actual, grads, p.given, strict=True)):
        assert (y.dtype, y.is_contiguous()) == (like.dtype, True)
        assert_close(y, exact, tolerance, f"gradient {i}")
    for i, wants in enumerate(_one_at_a_time(p) if alone else ()):
        groups = dual_backward(p.g, p.h, *p.primals, *p.tangents, mean, rstd, t_rstd, **p.kinds, **wants)
        (only,) = [y for group in groups for y in group if y is not None]
        assert_close(only, grads[i], tolerance, f"gradient {i} alone")
    plainly = replace(p, tangents=[None] * 3)
    actual = backward(p.h, *p.primals, mean, rstd, **p.kinds, wants=p.wanted[0])
    for k, h in enumerate(p.h):
        exact = _plain_gradients(plainly, h)
        for a, b in zip([y for y in actual if y is not None], exact, strict=True):
            assert_close(a[k], b, tolerance, "plain gradient")


def _plain_gradients(p, g):
    leaves = [None if y is None else y.double().requires_grad_() for y in p.primals]
    out = reference.forward(*leaves, **{**p.numbers, "dtype": torch.float64})
    return torch.autograd.grad((out * g).sum(), [y for y in leaves if y is not None])


def _wants(wants, t_wants):
    return {"wants": tuple(wants), "t_wants": tuple(t_wants)}


def _one_at_a_time(p):
    positions = [i for i, y in enumerate((*p.primals, *p.tangents)) if y is not None]
    for i in positions:
        flags = [j == i for j in range(6)]
        yield _wants(flags[:3], flags[3:])
