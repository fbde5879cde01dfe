"""Compile cases of the noise kernel: from the start of a group of four elements, and from inside one."""

from collections.abc import Iterator
from itertools import product

from .._common.compile_case import ARCHES, CompileCase
from .gaussian import _GROUPS, _NUM_WARPS, _gaussian_kernel

_SCALARS = {**dict.fromkeys(("seed", "offset", "first_group", "numel"), "i64"), "skipped": "i32"}


def compile_cases() -> Iterator[CompileCase]:
    for arch, dtype, shifted in product(ARCHES, ("bf16", "fp32"), (False, True)):
        yield CompileCase(
            name=f"gaussian {'shifted ' if shifted else ''}{dtype}",
            kernel=_gaussian_kernel,
            arch=arch,
            signature={"out_ptr": f"*{dtype}:16", **_SCALARS},
            constants={"GROUPS": _GROUPS, "SHIFTED": shifted},
            num_warps=_NUM_WARPS,
            spill_free=True,
        )
