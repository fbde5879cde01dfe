"""Compile cases of the gate kernels: adaLN at the widths of common models in full, other tiles once."""

from collections.abc import Iterator
from typing import Any

from .._common.compile_case import ARCHES, CompileCase
from .backward import _gated_add_backward_kernel
from .config import LONG, SHORT, Tile, norm_tile
from .forward import _gated_add_kernel
from .norm_backward import _gated_norm_backward_kernel
from .norm_forward import _gated_norm_kernel

_WIDTHS = (384, 768, 1152, 1536)  # of DiT-S, B, XL and of a wider model
_OTHER_WIDTHS = (64, 4096, 16384)


def compile_cases() -> Iterator[CompileCase]:
    """Yield every kernel with and without tangents, the gate being shared by the tokens of a sample."""
    for arch in ARCHES:
        for dual in (False, True):
            yield _add(arch, "bf16", LONG, dual)
            yield _add_backward(arch, "bf16", LONG, dual)
            for D in _WIDTHS:
                yield _norm(arch, "bf16", D, dual)
                yield _norm_backward(arch, "bf16", D, dual)
    for dtype, tile in (("bf16", SHORT), ("fp32", LONG)):
        yield _add("sm_90", dtype, tile, True)
        yield _add_backward("sm_90", dtype, tile, True)
    yield _add("sm_90", "bf16", LONG, True, shared=False)
    yield _add_backward("sm_90", "bf16", LONG, True, shared=False)
    for dtype, D in (("fp32", 1152), *(("bf16", D) for D in _OTHER_WIDTHS)):
        yield _norm("sm_90", dtype, D, True)
        yield _norm_backward("sm_90", dtype, D, True)
    for options in ({"shared": False}, {"single": False}):
        yield _norm("sm_90", "bf16", 1152, True, **options)
        yield _norm_backward("sm_90", "bf16", 1152, True, **options)


def _add(arch: str, dtype: str, tile: Tile, dual: bool, shared: bool = True) -> CompileCase:
    arguments = _operands(dtype, "gate y x") | _operands(dtype, "t_gate ty tx", dual, 4)
    arguments |= _pointers(dtype, "out t_out")
    return _tiled("add", _gated_add_kernel, arch, dtype, tile, dual, shared, arguments)


def _add_backward(arch: str, dtype: str, tile: Tile, dual: bool, shared: bool = True) -> CompileCase:
    arguments = _operands(dtype, "gate y g") | _operands(dtype, "t_gate ty h", dual, 4)
    of_gate = "fp32" if shared else dtype
    arguments |= _pointers(of_gate, "d_gate") | _pointers(dtype, "dy")
    arguments |= _pointers(of_gate, "d_t_gate", dual) | _pointers(dtype, "d_ty", dual)
    return _tiled("add backward", _gated_add_backward_kernel, arch, dtype, tile, dual, shared, arguments)


def _norm(arch: str, dtype: str, D: int, dual: bool, shared: bool = True, single: bool = True) -> CompileCase:
    arguments = _operands(dtype, "x gate y scale shift") | _operands(dtype, "tx t_gate ty t_scale t_shift", dual, 4)
    arguments |= (
        _pointers(dtype, "sum normed t_sum t_normed") | _pointers("fp32", "mean rstd t_mean t_rstd") | {"eps": "fp32"}
    )
    arguments |= _sizes("group_size chunk_size num_groups num_chunks num_tangents")
    return _wide("norm", _gated_norm_kernel, arch, dtype, D, dual, shared, single, arguments, {})


def _norm_backward(arch: str, dtype: str, D: int, dual: bool, shared: bool = True, single: bool = True) -> CompileCase:
    arguments = _operands(dtype, "g_sum g") | _operands(dtype, "h_sum h", dual, 4)
    arguments |= _operands(dtype, "sum gate y scale") | _operands(dtype, "t_sum t_gate ty t_scale", dual, 4)
    arguments |= _pointers("fp32", "mean rstd")
    of_shared, t_sums = "fp32" if shared else dtype, dual and (single or not shared)
    arguments |= _pointers(dtype, "dx dy") | _pointers(of_shared, "d_gate d_scale d_shift")
    arguments |= _pointers(dtype, "d_tx d_ty", dual) | _pointers(of_shared, "d_t_gate d_t_scale d_t_shift", t_sums)
    arguments |= _sizes("group_size chunk_size num_groups num_chunks") | {"num_inner": "1" if single else "i32"}
    kernel = _gated_norm_backward_kernel
    return _wide("norm backward", kernel, arch, dtype, D, dual, shared, single, arguments, {"PRIMAL": True})


def _tiled(
    name: str, kernel: Any, arch: str, dtype: str, tile: Tile, dual: bool, shared: bool, arguments: dict[str, Any]
) -> CompileCase:
    arguments = arguments | _sizes("num_groups num_rows num_tangents")
    constants = {"D": 1152, "SHARED": shared, "ALIGN": 8, "BLOCK_M": tile.block_m, "BLOCK_D": tile.block_d}
    name = f"{name} {tile.block_m} x {tile.block_d}{' dual' * dual}{' per token' * (not shared)} {dtype}"
    return _case(name, kernel, arch, arguments, constants, tile.num_warps, spill_free=True)


def _wide(
    name: str, kernel: Any, arch: str, dtype: str, D: int, dual: bool, shared: bool, single: bool,
    arguments: dict[str, Any], constants: dict[str, Any],
) -> CompileCase:  # fmt: skip
    tile = norm_tile(D, backward="backward" in name)
    constants = constants | {
        "D": D, "CENTRED": True, "UNIT": True, "SHARED": (shared,) * 3, "SINGLE": single, "ALIGN": 8,
        "ROWS": tile.rows, "COLUMNS": tile.columns, **({"STAGES": tile.stages} if "backward" in name else {}),
    }  # fmt: skip
    notes = " dual" * dual + " per token" * (not shared) + " many" * (not single)
    spill_free = dtype == "bf16" and D <= 1536
    return _case(f"{name}{notes} D {D} {dtype}", kernel, arch, arguments, constants, tile.num_warps, spill_free)


def _case(
    name: str, kernel: Any, arch: str, arguments: dict[str, Any], constants: dict[str, Any], num_warps: int,
    spill_free: bool,
) -> CompileCase:  # fmt: skip
    given = {name: ty for name, ty in arguments.items() if ty is not None}
    absent = {name: None for name, ty in arguments.items() if ty is None}
    return CompileCase(name, kernel, arch, given, {**absent, **constants}, num_warps=num_warps, spill_free=spill_free)


def _operands(dtype: str, names: str, present: bool = True, axes: int = 3) -> dict[str, Any]:
    strides = {f"strides_{name}": ("i32:16",) * axes if present else None for name in names.split()}
    return _pointers(dtype, names, present) | strides


def _pointers(dtype: str, names: str, present: bool = True) -> dict[str, Any]:
    return {f"{name}_ptr": f"*{dtype}:16" if present else None for name in names.split()}


def _sizes(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), "i32")
