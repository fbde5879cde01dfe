"""Compile cases of the divergence kernels: each kernel with each kind of probe."""

from collections.abc import Iterator
from itertools import product

import torch

from .._common.compile_case import ARCHES, CompileCase
from ._tile import LANES, constexprs, grid_over
from .probes import _probes_kernel
from .reduce import _dots_kernel

_SCALARS = {
    **dict.fromkeys(("seed", "offset", "start"), "i64"),
    **dict.fromkeys(("num_rows", "tiles_per_row"), "i32"),
    "row_size": "i32:16",
}
_KERNELS = (
    ("probes", _probes_kernel, {"c_ptr": None}, "out_ptr"),
    ("scaled probes", _probes_kernel, {"c_ptr": "*fp32:16"}, "out_ptr"),
    ("dots", _dots_kernel, {"partial_ptr": "*fp32:16"}, "products_ptr"),
)


def compile_cases() -> Iterator[CompileCase]:
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    for arch, dtype, distribution in product(ARCHES, dtypes, LANES):
        options = dict(grid_over(64, 4096, 0, distribution).options)
        num_warps = options.pop("num_warps")
        for name, kernel, other, main in _KERNELS:
            yield CompileCase(
                name=f"{name} {distribution} {dtype}",
                kernel=kernel,
                arch=arch,
                signature={main: f"*{dtype}:16", **other, **_SCALARS},
                constants={**constexprs(dtypes[dtype], distribution), **options},
                num_warps=num_warps,
                spill_free=True,
            )
