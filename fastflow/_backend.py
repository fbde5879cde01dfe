"""Which implementation serves a call: the Triton kernels or the plain-PyTorch reference. Decided here, nowhere else."""

import functools
import importlib.util
import logging
import os
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "triton", "reference"]
_BACKENDS = get_args(Backend)

logger = logging.getLogger("fastflow")

KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MIN_CAPABILITY = (8, 0)


@torch.compiler.assume_constant_result
def triton_installed() -> bool:
    """Whether Triton can be imported at all."""
    return importlib.util.find_spec("triton") is not None


@torch.compiler.assume_constant_result
def interpreted() -> bool:
    """Whether Triton kernels run in the interpreter (``TRITON_INTERPRET=1`` before Triton is imported)."""
    if not triton_installed():
        return False
    import triton

    return bool(triton.knobs.runtime.interpret)


def debug_checks() -> bool:
    """Whether checks that must read values off the GPU are wanted (``FASTFLOW_DEBUG=1``)."""
    return os.environ.get("FASTFLOW_DEBUG", "0") == "1"


def why_not_triton(*tensors: Tensor) -> str | None:
    """The reason the Triton kernels cannot take these tensors, or None when they can."""
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


def resolve(backend: str, family: str, *tensors: Tensor) -> Literal["triton", "reference"]:
    """Choose the implementation for one call of an op of ``family``.

    ``"auto"`` follows the environment variable ``FASTFLOW_BACKEND`` if it is set, else takes Triton on a GPU that the
    kernels support and the reference otherwise, and logs the reason once per family. ``"triton"`` on tensors the
    kernels cannot take raises a ValueError with the reason.
    """
    choice, reason = explain(backend, *tensors)
    if choice == "triton" and reason is not None:
        raise ValueError(f"backend='triton' cannot serve {family}: {reason}")
    if backend == "auto" and not torch.compiler.is_compiling():
        _log_once(family, choice, reason)
    return choice


def explain(backend: str, *tensors: Tensor) -> tuple[Literal["triton", "reference"], str | None]:
    """The implementation that is asked for, and what speaks against Triton: with ``"triton"``, why it cannot serve."""
    wanted = requested(backend)
    if wanted == "reference":
        return "reference", None if backend == wanted else "FASTFLOW_BACKEND=reference"
    if wanted == "auto" and tensors and {x.device.type for x in tensors} == {"cpu"}:
        return "reference", "the tensors are on the CPU (Triton's interpreter is for tests, with backend='triton')"
    reason = why_not_triton(*tensors)
    if wanted == "triton":
        return "triton", reason
    return ("triton" if reason is None else "reference"), reason


def requested(backend: str) -> str:
    """What the caller asks for, or the process where the caller leaves it open."""
    if backend == "auto":
        backend = os.environ.get("FASTFLOW_BACKEND", "auto")
        if backend not in _BACKENDS:
            raise ValueError(f"FASTFLOW_BACKEND must be one of {', '.join(map(repr, _BACKENDS))}, got {backend!r}")
    elif backend not in _BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(map(repr, _BACKENDS))}, got {backend!r}")
    return backend


@torch.compiler.assume_constant_result
@functools.cache
def _capability(device_index: int | None) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device_index)


@functools.cache
def _log_once(family: str, choice: str, reason: str | None) -> None:
    because = f", because {reason}" if reason else ""
    logger.info("%s: %s%s", family, "Triton kernels" if choice == "triton" else "PyTorch reference", because)
