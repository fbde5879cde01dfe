"""Find the module of ``kernels`` that an op's options name."""

import functools
import importlib
from typing import Any


@functools.cache
def module_of(family: str, implementation: str, kernels: str) -> Any:
    """Return the family's ``aten``, or a module of its Triton kernels, imported only then: Triton may be absent."""
    name = kernels if implementation == "triton" else "aten"
    return importlib.import_module(f"...kernels.{family}.{name}", __name__)
