"""The reference by its definition as a rotation, the other implementations against the reference in float64."""

import pytest
import torch
from torch import Tensor

from fastflow.kernels.rope import aten, reference
from tests.compare import DEVICE, assert_close

TOLERANCE = {torch.float64: 1e-15, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
SHAPES = {  # G, H, N, D, R
    "one": (1, 1, 1, 2, 2),
    "whole rows": (2, 3, 5, 8, 8),
    "partial": (1, 2, 7, 10, 6),
    "odd rows": (2, 1, 33, 7, 4),
    "wide": (1, 2, 9, 64, 64),
    "72": (1, 1, 17, 72, 72),
    "empty": (1, 2, 0, 8, 8),
}
TABLES = {"shared": (False, False), "per sample": (True, False), "per head": (False, True)}


def triton_rotate(*args):
    pytest.importorskip("triton")
    from fastflow.kernels.rope.rotate import rotate

    return rotate(*args)


IMPLEMENTATIONS = {"aten": aten.rotate, "triton": triton_rotate}


def problem(shape: str, dtype: torch.dtype, layout: str = "contiguous", table: str = "shared", K: int = 2):
    G, H, N, D, R = SHAPES[shape]
    generator = torch.Generator().manual_seed(0)

    def draw(*lead: int) -> Tensor:
        if layout == "qkv":
            return (
                torch.randn(*lead, G, N, 3, H, D, generator=generator).to(DEVICE, dtype).select(-3, 1).transpose(-2, -3)
            )
        if layout == "transposed":
            return torch.randn(*lead, G, H, D, N, generator=generator).to(DEVICE, dtype).mT
        return torch.randn(*lead, G, H, N, D, generator=generator).to(DEVICE, dtype)

    of_samples, of_heads = TABLES[table]
    angles = torch.randn(G if of_samples else 1, H if of_heads else 1, N, R // 2, generator=generator)
    return draw(), draw(K), angles.cos().to(DEVICE), angles.sin().to(DEVICE)


def check(rotate, x, tx, cos, sin, interleaved):
    for transpose in (False, True):
        turn = cos.double(), -sin.double() if transpose else sin.double()
        for some in ((x, tx), (x, None), (None, tx)):
            for y, z in zip(some, rotate(*some, cos, sin, interleaved, transpose)):
                if y is None:
                    assert z is None
                    continue
                assert z.dtype == y.dtype
                assert z.is_contiguous()
                assert_close(z, reference.forward(y.double(), *turn, interleaved), TOLERANCE[y.dtype])


@pytest.mark.parametrize("interleaved", [False, True])
def test_reference_is_the_rotation(interleaved):
    """Against the matrix of RoFormer's eq. 34, written pair by pair."""
    x, _, cos, sin = problem("partial", torch.float64)
    D, half = x.shape[-1], cos.shape[-1]
    out = reference.forward(x, cos.double(), sin.double(), interleaved)
    for n in range(x.shape[2]):
        matrix = torch.eye(D, dtype=torch.float64, device=DEVICE)
        for i in range(half):
            a, b = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
            c, s = cos[0, 0, n, i], sin[0, 0, n, i]
            matrix[a, a], matrix[a, b], matrix[b, a], matrix[b, b] = c, -s, s, c
        assert_close(out[:, :, n], x[:, :, n] @ matrix.T, 1e-14)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_shapes(implementation, shape, interleaved):
    check(IMPLEMENTATIONS[implementation], *problem(shape, torch.float32), interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_aten_dtypes(dtype, interleaved):
    check(aten.rotate, *problem("partial", dtype), interleaved)


@pytest.mark.parametrize("interleaved", [False, True])
def test_kernel_in_float16(interleaved):
    check(triton_rotate, *problem("partial", torch.float16), interleaved)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("layout", ["qkv", "transposed"])
@pytest.mark.parametrize("shape", ["whole rows", "odd rows"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_layouts(implementation, shape, layout, table):
    for interleaved in (False, True):
        check(IMPLEMENTATIONS[implementation], *problem(shape, torch.float32, layout, table), interleaved)
