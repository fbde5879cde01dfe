"""Declare a family's kernels to the compile report (``python -m bench.compiler``), which compiles without a GPU.

A family's ``compile_cases.py`` has a function ``compile_cases()`` that yields a CompileCase for each kernel in each
configuration that ships.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ARCHES = ("sm_80", "sm_90", "sm_100", "gfx942")


@dataclass(frozen=True)
class CompileCase:
    """One kernel, specialised as a launch would specialise it.

    name: unique in its family; arch: one of ARCHES or ``"sm_86"``.
    signature: the Triton type of each argument, such as ``"*bf16"``, ``"i32"``, ``"fp32"``, or a tuple of types for a
    tuple argument. A trailing ``":16"`` marks a multiple of 16. Inside a tuple, None and ``"1"`` are the constants None
    and 1. constants: the remaining arguments, constexprs and None.
    tensor_cores: the kernel must use tensor cores; spill_free: no register may spill. Otherwise the spills may not
    exceed those of the committed report.
    """

    name: str
    kernel: Any
    arch: str
    signature: Mapping[str, Any]
    constants: Mapping[str, Any]
    num_warps: int = 4
    num_stages: int = 2
    tensor_cores: bool = False
    spill_free: bool = False
