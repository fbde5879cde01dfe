"""Decide whether the Triton kernels can run on the given tensors, and what the caller or the process asked for."""

import functools
import importlib.util
import logging
import os
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from ._checks import check_choice
from ._torch import constant_when_traced

Backend = Literal["auto", "triton", "reference"]
_BACKENDS = get_args(Backend)

logger = logging.getLogger("fastflow")

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MIN_CAPABILITY = (8, 0)


class Operand(NamedTuple):
    """The dtype and device of a tensor that is not allocated yet."""

    dtype: torch.dtype
    device: torch.device


@constant_when_traced
def triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@constant_when_traced
def interpreted() -> bool:
    """Return True if Triton runs its interpreter (``TRITON_INTERPRET=1`` was set before Triton was imported)."""
    if not triton_installed():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def why_not_triton(*tensors: Tensor | Operand) -> str | None:
    """Return the reason why the Triton kernels cannot take these tensors, or None if they can."""
    if not triton_installed():
        return "triton is not installed"
    for x in tensors:
        if x.dtype not in KERNEL_DTYPES:
            return f"the kernels take float16, bfloat16 and float32, not {str(x.dtype).removeprefix('torch.')}"
        if x.device.type == "cpu":
            if not interpreted():
                return "the tensors are on the CPU (the kernels run there only with TRITON_INTERPRET=1)"
            if x.dtype == torch.bfloat16:
                return "Triton's interpreter computes bfloat16 wrongly; use float32 or float16 with TRITON_INTERPRET=1"
        elif x.device.type != "cuda":
            return f"the kernels run on CUDA devices, not {x.device.type!r}"
        elif torch.version.hip is None and _capability(x.device.index) < _MIN_CAPABILITY:
            return f"the GPU has compute capability {_capability(x.device.index)}, the kernels need {_MIN_CAPABILITY}"
    return None


def resolve(backend: str, family: str, *tensors: Tensor | Operand) -> Literal["triton", "reference"]:
    """Choose between Triton and PyTorch for one call of an op of ``family``.

    ``"auto"`` follows the environment variable ``FASTFLOW_BACKEND`` if it is set. Otherwise it takes Triton on a GPU
    that the kernels support, and PyTorch elsewhere; the reason is logged once per family. ``"triton"`` raises a
    ValueError that says why, if the kernels cannot take the tensors.
    """
    choice, reason = explain(backend, *tensors)
    if choice == "triton" and reason is not None:
        raise ValueError(f"backend='triton' cannot serve {family}: {reason}")
    if backend == "auto" and not torch.compiler.is_compiling():
        _log_once(family, choice, reason)
    return choice


def explain(backend: str, *tensors: Tensor | Operand) -> tuple[Literal["triton", "reference"], str | None]:
    """Return the choice and the reason against Triton: why it was not taken or, for ``"triton"``, why it cannot run."""
    wanted = requested(backend)
    if wanted == "reference":
        return "reference", None if backend == wanted else "FASTFLOW_BACKEND=reference"
    if wanted == "auto" and tensors and {x.device.type for x in tensors} == {"cpu"}:
        return "reference", "the tensors are on the CPU (Triton's interpreter is for tests, with backend='triton')"
    reason = why_not_triton(*tensors)
    if wanted == "triton":
        return "triton", reason
    return ("triton" if reason is None else "reference"), reason


def is_free(backend: str) -> bool:
    """Return True if neither the caller nor ``FASTFLOW_BACKEND`` asked for a backend."""
    return backend == "auto" and "FASTFLOW_BACKEND" not in os.environ


def requested(backend: str) -> str:
    """Return the caller's backend or, for ``"auto"``, that of ``FASTFLOW_BACKEND``."""
    check_choice("backend", backend, _BACKENDS)
    if backend != "auto":
        return backend
    backend = os.environ.get("FASTFLOW_BACKEND", "auto")
    check_choice("FASTFLOW_BACKEND", backend, _BACKENDS)
    return backend


@constant_when_traced
@functools.cache
def _capability(device_index: int | None) -> tuple[int, int]:
    """Return the compute capability, or (0, 0) without a GPU: fake tensors need none."""
    if not torch.cuda.is_available():
        return 0, 0
    return torch.cuda.get_device_capability(device_index)


@functools.cache
def _log_once(family: str, choice: str, reason: str | None) -> None:
    because = f", because {reason}" if reason else ""
    logger.info("%s: %s%s", family, "Triton kernels" if choice == "triton" else "PyTorch reference", because)
