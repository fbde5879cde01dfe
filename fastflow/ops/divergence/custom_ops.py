"""The divergence kernels as custom ops: opaque, functional and traceable. Derivatives live in ``_divergence_rules``.

A draw is ``(seed, offset, first, distribution, dtype)``: probes ``first ...`` of a stream, rounded to dtype.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import _backend
from ...kernels.divergence import reference


@torch.library.custom_op("fastflow::probes", mutates_args=())
def probes(
    shape: Sequence[int],
    seed: int,
    offset: int,
    first: int,
    distribution: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The probes as a tensor, ``[K, B, ...]`` = shape: by the kernel on a GPU, by the reference elsewhere."""
    if device.type != "cpu" and _backend.why_not_triton(torch.empty(0, dtype=dtype, device=device)) is None:
        from ...kernels.divergence import probes as kernel

        return kernel.probes(shape, seed, offset, first, distribution, dtype, device)
    out = torch.empty(tuple(shape), dtype=dtype, device=device)
    return out.copy_(reference.probes(shape, seed, offset, first, distribution))


@probes.register_fake
def _(shape: Sequence[int], *draw: Any) -> Tensor:
    return torch.empty(shape, dtype=draw[-2], device=draw[-1])


@torch.library.custom_op("fastflow::probe_dots", mutates_args=())
def probe_dots(products: Tensor, seed: int, offset: int, first: int, distribution: str, dtype: torch.dtype) -> Tensor:
    """``sum_j probes_kbj products_kbj``, fp32 ``[K, B]``. products: ``[K, B, ...]``."""
    from ...kernels.divergence.reduce import dots

    return dots(products, seed, offset, first, distribution, dtype)


@probe_dots.register_fake
def _(products: Tensor, *draw: Any) -> Tensor:
    return products.new_empty(products.shape[:2], dtype=torch.float32)


@torch.library.custom_op("fastflow::scaled_probes", mutates_args=())
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
    """``c_kb probes_kbj``, ``[K, B, ...]`` = shape, in out_dtype. c: ``[K, B]``."""
    from ...kernels.divergence import probes as kernel

    return kernel.probes(shape, seed, offset, first, distribution, dtype, c.device, c, out_dtype)


@scaled_probes.register_fake
def _(c: Tensor, shape: Sequence[int], out_dtype: torch.dtype, *draw: Any) -> Tensor:
    return c.new_empty(shape, dtype=out_dtype)
