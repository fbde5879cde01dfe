"""Custom ops that draw the probes and reduce with them; their derivatives are in ``rules.py``."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...kernels.divergence import reference
from .._custom_op import custom_op


class Draw(NamedTuple):
    """Probes ``first ...`` of the stream ``(seed, offset)``, rounded to dtype."""

    seed: int
    offset: int
    first: int
    distribution: str
    dtype: torch.dtype

    def materialize(self, shape: Sequence[int], device: torch.device, implementation: str) -> Tensor:
        """Return the probes as a tensor, ``[K, B, ...]`` = shape."""
        return probes(list(shape), device, implementation, *self)


@custom_op("probes")
def probes(
    shape: Sequence[int],
    device: torch.device,
    implementation: str,
    seed: int,
    offset: int,
    first: int,
    distribution: str,
    dtype: torch.dtype,
) -> Tensor:
    """Draw probes, ``[K, B, ...]`` = shape, with ``"triton"`` or ``"reference"``."""
    if implementation == "triton":
        from ...kernels.divergence import probes as kernel

        return kernel.probes(shape, seed, offset, first, distribution, dtype, device)
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    return out.copy_(reference.probes(shape, seed, offset, first, distribution))


@probes.register_fake
def _(shape: Sequence[int], device: torch.device, implementation: str, *draw: Any) -> Tensor:
    return torch.empty(shape, dtype=Draw(*draw).dtype, device=device)


@custom_op("probe_dots")
def probe_dots(products: Tensor, seed: int, offset: int, first: int, distribution: str, dtype: torch.dtype) -> Tensor:
    """Return ``sum_j probes_kbj products_kbj``, fp32 ``[K, B]``, by the Triton kernel. products: ``[K, B, ...]``."""
    from ...kernels.divergence.reduce import dots

    return dots(products, seed, offset, first, distribution, dtype)


@probe_dots.register_fake
def _(products: Tensor, *draw: Any) -> Tensor:
    return products.new_empty(products.shape[:2], dtype=torch.float32)


@custom_op("scaled_probes")
def scaled_probes(
    c: Tensor,
    shape: Sequence[int],
    out_dtype: torch.dtype,
    seed: int,
    offset: int,
    first: int,
    distribution: str,
    dtype: torch.dtype,
) -> Tensor:
    """Return ``c_kb probes_kbj``, ``[K, B, ...]`` = shape, in out_dtype, by the Triton kernel. c: ``[K, B]``."""
    from ...kernels.divergence import probes as kernel

    return kernel.probes(shape, seed, offset, first, distribution, dtype, c.device, c, out_dtype)


@scaled_probes.register_fake
def _(c: Tensor, shape: Sequence[int], out_dtype: torch.dtype, *draw: Any) -> Tensor:
    return c.new_empty(shape, dtype=out_dtype)
