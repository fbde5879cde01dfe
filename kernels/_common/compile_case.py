"""How a kernel family declares its kernels to ``bench/compile_report.py``, which compiles them without a GPU.

A family's ``compile_cases.py`` has a function ``compile_cases()`` that yields a CompileCase for each kernel in each
configuration it ships.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CompileCase:
    """One kernel, specialised as a launch would specialise it.

    name: unique in its family; arch: ``"sm_80"``, ``"sm_90"``, ``"sm_100"`` or ``"gfx942"``.
    signature: argument to Triton type, such as ``"*bf16"``, ``"i32"``, ``"fp32"``, or a tuple of them for a tuple; a
    trailing ``":16"`` says that the value is a multiple of 16; in a tuple, None and ``"1"`` are the constants None and
    1. constants: the remaining arguments, constexprs and None.
    tensor_cores: whether the kernel must use them; spill_free: whether no register may spill (else the committed report
    is the budget).
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
