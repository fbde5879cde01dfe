"""Compile cases of the noise kernel."""

from collections.abc import Iterator
from itertools import product

from .._common.compile_case import ARCHES, CompileCase
from .gaussian import _GROUPS, _NUM_WARPS, _gaussian_kernel


def compile_cases() -> Iterator[CompileCase]:
    for arch, dtype in product(ARCHES, ("bf16", "fp32")):
        yield CompileCase(
            name=f"gaussian {dtype}",
            kernel=_gaussian_kernel,
            arch=arch,
            signature={"out_ptr": f"*{dtype}:16", "seed": "i64", "offset": "i64", "numel": "i64"},
            constants={"GROUPS": _GROUPS},
            num_warps=_NUM_WARPS,
            spill_free=True,
        )
