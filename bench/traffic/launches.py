"""Kernel launches of one DiT block's joint forward and joint backward, on PyTorch's ops and on fastflow's kernels."""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch.func import jvp

import fastflow as ff
from bench.harness.traffic import Traffic, counted
from bench.suites.models import with_random_zeros
from bench.suites.on_pytorch import pytorch_ops

GEMMS = ("mm", "addmm", "bmm", "baddbmm")
WAYS = ("PyTorch", "fastflow")
PASSES = ("joint forward", "joint backward")


def launches(way: str) -> dict[str, Counter[str]]:
    """Return the kernels that one block adds to each pass: those of a DiT of three blocks less those of one of two."""
    shallow, deep = (_of_model(way, depth) for depth in (2, 3))
    return {name: deep[name] - shallow[name] for name in PASSES}


def rows() -> list[dict[str, Any]]:
    """Return a row for each way and pass: Triton kernels, GEMMs and PyTorch's other kernels."""
    return [
        {
            "way": way,
            "pass": name,
            "launches": found.total(),
            "triton": sum(n for kernel, n in found.items() if kernel.startswith("_")),
            "gemms": sum(found[kernel] for kernel in GEMMS),
            "kernels": dict(sorted(found.items())),
        }
        for way in WAYS
        for name, found in launches(way).items()
    ]


def _of_model(way: str, depth: int) -> dict[str, Counter[str]]:
    torch.manual_seed(0)
    model = with_random_zeros(ff.nn.DiT(8, 2, 1, hidden_size=32, depth=depth, num_heads=2))
    x, t, v = torch.randn(2, 1, 8, 8), torch.rand(2), torch.randn(2, 1, 8, 8)
    with _on(way):
        with counted() as forward:
            u, du = jvp(model, (x, t), (v, torch.ones_like(t)))
        with counted() as backward:
            torch.autograd.grad((u, du), tuple(model.parameters()), (u.detach(), du.detach()))
    return dict(zip(PASSES, map(_names, (forward, backward))))


def _names(traffic: Traffic) -> Counter[str]:
    return Counter(f"_{x.name.lstrip('_')}" if x.triton else x.name.lstrip("_") for x in traffic.launches)


@contextlib.contextmanager
def _on(way: str) -> Iterator[None]:
    if way == "PyTorch":
        with pytorch_ops():
            yield
    else:
        with mock.patch.dict(os.environ, {"FASTFLOW_BACKEND": "triton"}):
            yield
