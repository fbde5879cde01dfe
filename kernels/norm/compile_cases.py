"""Compile cases of the norm kernels: the widths of common models in full, every other tile once."""

from collections.abc import Iterator
from typing import Any

from .._common.compile_case import ARCHES, CompileCase
from .backward import _norm_backward_kernel
from .config import config
from .forward import _norm_forward_kernel
from .partials import CHUNKS, COLUMNS, NUM_WARPS, _sum_partials_kernel

_WIDTHS = (384, 768, 1152, 1536)  # of DiT-S, B, XL and of a wider model
_OTHER_WIDTHS = (64, 128, 256, 4096, 8192, 16384)  # one of every other tile


def compile_cases() -> Iterator[CompileCase]:
    """Yield both kernels with tangents, which need most registers, on every architecture; the rest on one."""
    for arch in ARCHES:
        for D in _WIDTHS:
            yield from _both(arch, "bf16", D, "modulated", dual=True)
        yield _partials(arch)
    for D in _OTHER_WIDTHS:
        yield from _both("sm_90", "bf16", D, "modulated", dual=True)
    for D in (384, 1152):
        yield from _both("sm_90", "bf16", D, "modulated", dual=False)
        for mode in ("affine", "rms"):
            yield from _both("sm_90", "bf16", D, mode, dual=True)
    yield from _both("sm_90", "fp32", 1152, "modulated", dual=True)


def _both(arch: str, dtype: str, D: int, mode: str, dual: bool) -> Iterator[CompileCase]:
    yield _forward(arch, dtype, D, mode, dual)
    yield _backward(arch, dtype, D, mode, dual)


def _forward(arch: str, dtype: str, D: int, mode: str, dual: bool) -> CompileCase:
    names = _operands(mode)
    arguments = _tensors(dtype, "x scale shift", names) | _tensors(dtype, "tx t_scale t_shift", names if dual else ())
    outputs = {"out_ptr": _pointer(dtype), "t_out_ptr": _pointer(dtype) if dual else None}
    statistics = {"mean_ptr": "*fp32:16", "rstd_ptr": "*fp32:16", "eps": "fp32"}
    statistics |= {f"t_{name}_ptr": "*fp32:16" if dual else None for name in ("mean", "rstd")}
    sizes = dict.fromkeys(("num_rows", "group_size"), "i32") | {"num_tangents": "1"}
    return _case("forward", _norm_forward_kernel, arch, dtype, D, mode, dual, arguments | outputs | statistics | sizes)


def _backward(arch: str, dtype: str, D: int, mode: str, dual: bool) -> CompileCase:
    names = _operands(mode)
    arguments = _tensors(dtype, "g", ("g",) if dual else ()) | _tensors(dtype, "h x scale", ("h", *names))
    arguments |= _tensors(dtype, "tx t_scale", names if dual else ())
    arguments |= {"mean_ptr": "*fp32:16", "rstd_ptr": "*fp32:16"}
    primal, tangent = ("x", "scale", "shift"), ("tx", "t_scale", "t_shift")
    for name, of in zip((*primal, *tangent), primal * 2):
        kept = of in names and (dual or name in tangent)
        arguments[f"d{name}_ptr"] = None if not kept else _pointer(dtype) if of == "x" else "*fp32:16"
    sizes = dict.fromkeys(("group_size", "chunk_size", "num_groups", "num_chunks"), "i32") | {"num_inner": "1"}
    constants = {"SCALE_PER_TOKEN": False, "SHIFT_PER_TOKEN": False}
    return _case("backward", _norm_backward_kernel, arch, dtype, D, mode, dual, arguments | sizes, constants)


def _partials(arch: str) -> CompileCase:
    return CompileCase(
        name="partial sums bf16",
        kernel=_sum_partials_kernel,
        arch=arch,
        signature={
            "partial_ptrs": ("*fp32:16",) * 2,
            "sum_ptrs": ("*bf16:16",) * 2,
            "num_slots": ("i32",) * 2,
            "num_chunks": "i32",
        },
        constants={"D": 1152, "CHUNKS": CHUNKS, "COLUMNS": COLUMNS},
        num_warps=NUM_WARPS,
        spill_free=True,
    )


def _case(
    direction: str, kernel: Any, arch: str, dtype: str, D: int, mode: str, dual: bool, arguments: dict[str, Any],
    constants: dict[str, Any] | None = None,
) -> CompileCase:  # fmt: skip
    tile = config(D, backward=direction == "backward")
    tiled = {"ROWS": tile.rows, "COLUMNS": tile.columns}
    tiled |= {"STAGES": tile.stages} if direction == "backward" else {}
    given = {name: ty for name, ty in arguments.items() if ty is not None}
    absent = {name: None for name, ty in arguments.items() if ty is None}
    options = {"D": D, "CENTRED": mode != "rms", "UNIT": mode == "modulated", "ALIGN": 8}
    return CompileCase(
        name=f"{direction} {mode}{' dual' if dual else ''} D {D} {dtype}",
        kernel=kernel,
        arch=arch,
        signature=given,
        constants={**absent, **options, **(constants or {}), **tiled},
        num_warps=tile.num_warps,
        spill_free=dtype == "bf16" and D <= 1536,
    )


def _operands(mode: str) -> tuple[str, ...]:
    """Return which of x, scale and shift a mode has; the same for their tangents."""
    return ("x", "scale") if mode == "rms" else ("x", "scale", "shift")


def _tensors(dtype: str, names: str, present: tuple[str, ...]) -> dict[str, Any]:
    """Return the pointers and strides of tensors, None for those that are not present under their primal's name."""
    found = {}
    for name in names.split():
        is_tangent = name.startswith("t") or name == "h"
        given = name.removeprefix("t_").removeprefix("t") in present
        found[f"{name}_ptr"] = _pointer(dtype) if given else None
        found[f"strides_{name}"] = ("i32:16",) * (4 if is_tangent else 3) if given else None
    return found


def _pointer(dtype: str) -> str:
    return f"*{dtype}:16"
