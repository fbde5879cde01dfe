"""Compile cases of the flow step: the case of a training step, and one with every feature on."""

from collections.abc import Iterator
from itertools import product

from .._common.compile_case import ARCHES, CompileCase
from ._launch import grid_of
from ._tile import DRAWN, GIVEN, STREAM_SCALARS
from .interpolate import _interpolate_kernel
from .loss import _loss_backward_kernel, _loss_kernel

_SCALARS = {name: "i32" if name == "skipped" else "i64" for name in STREAM_SCALARS}
_KERNELS = (
    ("interpolate", _interpolate_kernel, ("out_ptr",), ()),
    ("loss", _loss_kernel, ("pred_ptr",), ("partial_ptr",)),
    ("loss_backward", _loss_backward_kernel, ("pred_ptr", "grad_ptr"), ("scale_ptr",)),
)


def compile_cases() -> Iterator[CompileCase]:
    """Yield each kernel twice: contiguous with x0 drawn; strided, shifted and wide with x0 given and z drawn."""
    for arch, dtype in product(ARCHES, ("bf16", "fp32")):
        for name, kernel, like_x1, per_row in _KERNELS:
            for full in (False, True):
                axes = 3 if full else 1
                options = dict(grid_of(64, 4095 if full else 4096, shifted=full).options)
                num_warps = options.pop("num_warps")
                kinds = (GIVEN, GIVEN if full else DRAWN, DRAWN if full else 0)
                pointer, walk = f"*{dtype}:16", ("i64",) * (1 + axes) if full else ("i32:16", "1")
                given = [pointer if kind == GIVEN else None for kind in kinds]
                yield CompileCase(
                    name=f"{name} {'strided shifted wide' if full else 'contiguous drawn'} {dtype}",
                    kernel=kernel,
                    arch=arch,
                    signature={
                        "terms": tuple(given),
                        "coefficients": ("*fp32:16", "*fp32:16", "*fp32:16" if full else "fp32"),
                        **dict.fromkeys(like_x1, pointer),
                        **dict.fromkeys(per_row, "*fp32:16"),
                        **_SCALARS,
                        "strides": tuple(walk if x else None for x in (*given, *like_x1)),
                        "sizes": ("i64",) * axes if full else ("i32:16",),
                        **dict.fromkeys(("num_rows", "row_size", "tiles_per_row"), "i32"),
                    },
                    constants={
                        "KINDS": kinds,
                        "VARIES": (True, True, full),
                        "AXES": axes,
                        "SHIFTED": full,
                        "WIDE": full,
                        **options,
                    },
                    num_warps=num_warps,
                    spill_free=True,
                )
