"""Compile cases of the rope kernel: whole and partial rotation, both kinds of pairs, alone and with tangents."""

from collections.abc import Iterator
from itertools import product

from .._common.compile_case import ARCHES, CompileCase
from .config import NUM_WARPS, block_of
from .rotate import _rotate_kernel

_HEADS = {"D 64": (64, 32), "D 72": (72, 36), "D 128": (128, 64), "D 128 of which 64 turn": (128, 32)}  # D, pairs


def compile_cases() -> Iterator[CompileCase]:
    for arch, dtype, heads, interleaved in product(ARCHES, ("bf16", "fp32"), _HEADS, (False, True)):
        for joint in (False, True):
            yield _case(arch, dtype, heads, interleaved, joint)


def _case(arch: str, dtype: str, heads: str, interleaved: bool, joint: bool) -> CompileCase:
    D, half = _HEADS[heads]
    pairs = 1 << (half - 1).bit_length()
    strides = ("i32:16", "i32", "i32:16")  # a head starts at a multiple of D
    of_tangents = {"tx_ptr": f"*{dtype}:16", "t_out_ptr": f"*{dtype}:16", "strides_tx": ("i32:16", *strides)}
    return CompileCase(
        name=f"{'joint' if joint else 'alone'} {heads} {'interleaved' if interleaved else 'halves'} {dtype}",
        kernel=_rotate_kernel,
        arch=arch,
        signature={
            **{"x_ptr": f"*{dtype}:16", "out_ptr": f"*{dtype}:16", "cos_ptr": "*fp32:16", "sin_ptr": "*fp32:16"},
            **(of_tangents if joint else {}),
            "strides_x": strides,
            **dict.fromkeys(("strides_cos", "strides_sin"), ("i32:16", "i32:16", "i32")),
            **dict.fromkeys(("heads", "num_tokens", "num_tangents"), "i32"),
            "numel": "i32:16",
        },
        constants={
            **({} if joint else dict.fromkeys(of_tangents)),
            "D": D,
            "HALF": half,
            "INTERLEAVED": interleaved,
            "TRANSPOSE": False,
            "PAIRS": pairs,
            "REST": 1 << max(0, (D - 2 * half - 1)).bit_length(),
            "BLOCK": block_of(pairs),
        },
        num_warps=NUM_WARPS,
        spill_free=True,
    )
