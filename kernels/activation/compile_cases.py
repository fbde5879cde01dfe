"""Compile cases of the activation kernels: every function on long rows, the gated ones also on strided short rows."""

from collections.abc import Iterator
from itertools import product
from typing import Any

from .._common.compile_case import ARCHES, CompileCase
from .backward import _backward_kernel
from .config import LONG, SHORT, Tile
from .forward import _forward_kernel

_INPUTS = {"forward": ("x", "b", "tx", "tb"), "backward": ("g", "h", "x", "b", "tx", "tb")}
_OUTPUTS = {"forward": ("out", "t_out"), "backward": ("dx", "db", "dtx", "dtb")}
_KERNELS = {"forward": _forward_kernel, "backward": _backward_kernel}
_CASES = {  # kernel, and the tensors that are given
    "plain forward": ("forward", "x b out"),
    "forward": ("forward", "x tx out t_out"),
    "gated forward": ("forward", "x b tx tb out t_out"),
    "backward": ("backward", "h x dtx"),
    "gated backward": ("backward", "h x b dtx dtb"),
    "joint backward": ("backward", "g h x tx dx dtx"),
    "gated joint backward": ("backward", "g h x b tx tb dx db dtx dtb"),
}


def compile_cases() -> Iterator[CompileCase]:
    for arch, dtype, name in product(ARCHES, ("bf16", "fp32"), _CASES):
        kinds = ("silu",) if name.startswith(("gated", "plain")) else ("gelu", "gelu_tanh", "silu")
        for kind in kinds:
            yield _case(arch, dtype, name, kind, LONG)
        if name.startswith("gated"):
            yield _case(arch, dtype, name, "silu", SHORT)


def _case(arch: str, dtype: str, name: str, kind: str, tile: Tile) -> CompileCase:
    """Return a case with a runtime number of tangents, which needs more registers than one."""
    kernel, tensors = _CASES[name]
    given = set(tensors.split())
    pointers = {f"{x}_ptr": f"*{dtype}:16" for x in (*_INPUTS[kernel], *_OUTPUTS[kernel]) if x in given}
    strides = tuple(("i32:16", "i32:16") if x in given else None for x in _INPUTS[kernel])
    is_long = tile is LONG
    sizes: dict[str, Any] = {"num_tangents": "i32", "row_size": "i32:16", "numel": "i32:16"}
    constants: dict[str, Any] = {"KIND": kind, "ROWS": tile.rows, "COLS": tile.cols}
    constants |= {f"{x}_ptr": None for x in (*_INPUTS[kernel], *_OUTPUTS[kernel]) if x not in given}
    if is_long:
        constants["num_rows"] = 1
    else:
        sizes["num_rows"] = "i32"
    return CompileCase(
        name=f"{name} {kind} {dtype}{'' if is_long else ' short rows'}",
        kernel=_KERNELS[kernel],
        arch=arch,
        signature={**pointers, "strides": strides, **sizes},
        constants=constants,
        num_warps=tile.num_warps,
        spill_free=True,
    )
