"""Random divergences of a field whose Jacobian is known."""

import torch
from torch import Tensor

import fastflow as ff

from .call import Call
from .draw import Draw


def draw_divergence(draw: Draw, backend: str) -> Call:
    dtype = draw.one([torch.float64, torch.float64, torch.float32])
    batch, size = draw.integer(1, 3), draw.integer(1, 6)
    shape = draw.one([(size,), (1, size), (size, 1)])
    exact = draw.chance(0.5)
    probes = draw.normal(draw.integer(1, 4), batch, *shape, dtype=dtype)
    options = {"mode": draw.one(["auto", "forward", "reverse"]), "chunk_size": draw.one([None, 1, 2, 3])}
    options.update({"method": "exact"} if exact else {"probes": probes})

    def field(x: Tensor, A: Tensor) -> Tensor:
        return torch.tanh(x.reshape(batch, -1) @ A.T).view(batch, *shape) * (1 + x.square())

    def ours(x: Tensor, A: Tensor) -> Tensor:
        return ff.divergence(lambda x: field(x, A), x, **options, backend=backend).divergence

    def plain(x: Tensor, A: Tensor) -> Tensor:
        x = x.reshape(batch, -1)
        th = torch.tanh(x @ A.T)
        slope, own = (1 - th.square()) * (1 + x.square()), 2 * x * th  # J = diag(slope) A + diag(own)
        if exact:
            return (slope * A.diagonal() + own).sum(1)
        u = probes.to(x.dtype).flatten(2)
        return (u * (slope * (u @ A.T) + own * u)).sum(2).mean(0)

    # PyTorch has no jvp inside a dual level
    refused = ("dual_level", "vmap") if options["mode"] == "forward" else ("vmap",)
    name = f"divergence {(batch, *shape)} {dtype} {options if exact else {**options, 'probes': tuple(probes.shape)}}"
    x = [draw.strided(draw.normal(batch, *shape, dtype=dtype)), draw.normal(size, size, dtype=dtype)]
    return Call(name, ours, plain, x, refused)
