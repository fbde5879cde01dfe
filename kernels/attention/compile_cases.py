"""Compile cases of the attention kernels: every row of the tuning table at the common head dims."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

from .._common.compile_case import ARCHES, CompileCase
from .backward import _row_terms_kernel, _rows_of
from .backward_keys import _dual_dkdv_kernel
from .backward_queries import _dual_dq_kernel
from .config import DIRECTIONS, MASK_CONFIGS, WIDTHS, Config, max_head_dim, row, row_beside
from .forward import _dual_forward_kernel

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_STRIDES = ("i32:16",) * 4
_ARCHES = (*ARCHES, "sm_86")
_HEAD_DIMS = {64: 64, 80: 72, 96: 96, 128: 128, 256: 256}  # a head dim of each width; 72 is padded to 80
_WIDEST = "fp32 mask and results"


def compile_cases() -> Iterator[CompileCase]:
    """Yield every row of the tuning table twice or more: as most calls use it, and as the call that needs most memory.

    A launch never needs more memory than the case of its row whose mask and results are in float32: operands have one
    dtype, a bool or 16-bit mask is narrower, and a causal limit needs none. :func:`uncovered` holds this.
    """
    for arch in _ARCHES:
        for D in _HEAD_DIMS.values():
            if arch in ("sm_90", "sm_100") or D in (64, 72, 128):
                yield from _every_direction(arch, "bf16", D)
            for dtype in ("bf16", "fp32"):
                yield from _every_direction(arch, dtype, D, _WIDEST, mask="*fp32", results="fp32")
    for arch, width, direction in MASK_CONFIGS:
        yield _case(arch, "bf16", _HEAD_DIMS[width], direction, "16-bit mask", mask="*bf16")
    for arch in ("sm_80", "sm_90", "sm_100"):
        for D in (64, 72, 128):
            yield from _every_direction(arch, "fp32", D)
    yield from _every_direction("sm_90", "fp32", 96)
    for direction in ("forward", "dkdv-joint", "dq-joint"):
        yield _case("sm_90", "bf16", 64, direction, "causal", CAUSAL=True)
        yield _case("sm_90", "bf16", 64, direction, "bool mask", mask="*i1")
        yield _case("sm_90", "fp16", 64, direction)
    yield _case("sm_90", "bf16", 64, "forward", "bias", mask="*bf16")
    yield _case("sm_90", "bf16", 64, "dkdv-joint", "4 query heads a key head", GROUP=4)
    for dtype in ("bf16", "fp32"):
        yield _row_terms("sm_90", dtype, 72)
        yield _row_terms("sm_90", dtype, 256)


class _Use(NamedTuple):
    """A row of the tuning table in use. dtype: of float32 operands, or bf16 for any 16-bit type."""

    arch: str
    dtype: str
    width: int
    direction: str
    tile: tuple[int, ...]
    mask_bytes: int


def uncovered(cases: Iterable[CompileCase]) -> list[str]:
    """Return what a launcher can choose and no case compiles: rows of the tuning table, with and without a mask.

    A case covers its own row with a narrower mask or none.
    """
    compiled = {_use_of(case) for case in cases if "HEAD_DIM" in case.constants}
    return [
        f"{use.direction} width {use.width} {use.dtype} {use.arch}, mask of {use.mask_bytes} bytes: no compile case"
        for use in _uses()
        if not any(use[:-1] == c[:-1] and use.mask_bytes <= c.mask_bytes for c in compiled)
    ]


def _uses() -> Iterator[_Use]:
    for arch, dtype, width, direction, mask in itertools.product(
        _ARCHES, ("bf16", "fp32"), WIDTHS, DIRECTIONS, (None, "*bf16", "*fp32")
    ):
        config = _row(arch, dtype, width, direction, mask)
        if config is not None:
            tile = config.block_m, config.block_n, config.num_warps, config.num_stages
            same = direction == "forward-many" and config.tangents == 1  # the kernel of "forward"
            yield _Use(arch, dtype, width, "forward" if same else direction, tile, _bytes_of(mask))


def _use_of(case: CompileCase) -> _Use:
    constants, types = case.constants, case.signature
    dtype = "fp32" if types["q_ptr"].startswith("*fp32") else "bf16"
    width = next(w for w in WIDTHS if constants["HEAD_DIM"] <= w)
    tile = constants["BLOCK_M"], constants["BLOCK_N"], case.num_warps, case.num_stages
    return _Use(case.arch, dtype, width, case.name.split()[0], tile, _bytes_of(types.get("mask_ptr")))


def _bytes_of(mask: str | None) -> int:
    return {None: 0, "*i1": 1, "*bf16": 2, "*fp16": 2, "*fp32": 4}[mask]


def _every_direction(arch: str, dtype: str, D: int, note: str = "", **changes: Any) -> Iterator[CompileCase]:
    rows = {direction: _row(arch, dtype, D, direction, changes.get("mask")) for direction in DIRECTIONS}
    for direction, config in rows.items():
        if config is not None and (direction != "forward-many" or config != rows["forward"]):
            yield _case(arch, dtype, D, direction, note, **changes)


def _case(
    arch: str, dtype: str, D: int, direction: str, note: str = "", *,
    mask: str | None = None, results: str = "", **changes: Any,
) -> CompileCase:  # fmt: skip
    """Return a case. results: the dtype of tO and of all gradients, those of the primals being added up."""
    config = _row(arch, dtype, D, direction, mask)
    kind, _, mode = direction.partition("-")
    results = results or dtype
    kernel, arguments = _forward(dtype, mode, results) if kind == "forward" else _backward(dtype, kind, mode, results)
    arguments |= {"mask_ptr": mask, "strides_mask": _STRIDES if mask else None}
    arguments |= _tensors("fp32", "base", mask not in (None, "*i1"))
    constants = {
        "HEAD_DIM": D, "VALUE_DIM": D, "CAUSAL": False, "ALIGN": 8,
        "PRECISION": _precision(arch, dtype), "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
    }  # fmt: skip
    of_sums = {"GROUP": 1, "ADD": results != dtype}
    constants |= {"TANGENTS": _tangents(mode, config)} if kind == "forward" else of_sums
    return CompileCase(
        name=" ".join(filter(None, (direction, f"D {D}", dtype, note))),
        kernel=kernel,
        arch=arch,
        signature={name: ty for name, ty in arguments.items() if ty is not None},
        constants={name: None for name, ty in arguments.items() if ty is None} | constants | changes,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
        tensor_cores=True,
        spill_free=arch == "sm_90" and dtype != "fp32" and D <= 80 and not note,
    )


def _row(arch: str, dtype: str, D: int, direction: str, mask: str | None) -> Config | None:
    key = arch, _DTYPES[dtype], D, direction
    beside = row_beside(_DTYPES[mask[1:]], *key) if mask in ("*bf16", "*fp16", "*fp32") else None
    return (beside or row(*key)) if max_head_dim(*key[:2]) >= D else None


def _forward(dtype: str, mode: str, results: str) -> tuple[Any, dict[str, Any]]:
    tangents = mode != "plain"
    arguments = _tensors(dtype, "q k v out") | _tensors(dtype, "tq tk tv", tangents)
    arguments |= _tensors(results, "t_out", tangents)
    arguments |= _tensors("fp32", "lse") | _tensors("fp32", "mu", tangents)
    arguments |= _strides("q k v") | _strides("tq tk tv", tangents, ("i32:16",) * 5)
    return _dual_forward_kernel, arguments | _scalars("heads group nq nk tangent_groups")


def _backward(dtype: str, kind: str, mode: str, results: str) -> tuple[Any, dict[str, Any]]:
    tangents, joint = mode != "plain", mode == "joint"
    primal_grads, tangent_grads = ("dk dv", "dtk dtv") if kind == "dkdv" else ("dq", "dtq")
    arguments = _tensors(dtype, "q k v g") | _tensors(dtype, "tq tk tv h", tangents)
    arguments |= _tensors(results, primal_grads) | _tensors(results, tangent_grads, joint)
    arguments |= _tensors("fp32", "lse c") | _tensors("fp32", "a mu", tangents)
    arguments |= _strides("q k v g") | _strides("tq tk tv h", tangents)
    return _dual_dkdv_kernel if kind == "dkdv" else _dual_dq_kernel, arguments | _scalars("heads nq nk")


def _row_terms(arch: str, dtype: str, D: int) -> CompileCase:
    arguments = _tensors(dtype, "g h out") | _tensors("fp32", "t_out a c")
    arguments |= _strides("g out") | _strides("h t_out", stride=("i32:16",) * 5)
    arguments |= dict.fromkeys(("heads", "nq", "n_tangents"), "i32")
    constants = {"VALUE_DIM": D, "ALIGN": 8, "BLOCK_M": _rows_of(D)}
    return CompileCase(f"row terms D {D} {dtype}", _row_terms_kernel, arch, arguments, constants, spill_free=True)


def _tensors(dtype: str, names: str, present: bool = True) -> dict[str, str | None]:
    return {f"{name}_ptr": f"*{dtype}:16" if present else None for name in names.split()}


def _strides(names: str, present: bool = True, stride: tuple[str, ...] = _STRIDES) -> dict[str, Any]:
    return {f"strides_{name}": stride if present else None for name in names.split()}


def _scalars(names: str) -> dict[str, str]:
    return {"scale": "fp32"} | dict.fromkeys(names.split(), "i32")


def _tangents(mode: str, config: Config) -> int:
    return {"plain": 0, "": 1, "many": config.tangents}[mode]


def _precision(arch: str, dtype: str) -> str:
    if dtype != "fp32":
        return "tf32"
    return "ieee" if arch.startswith("gfx") else "tf32x3"
