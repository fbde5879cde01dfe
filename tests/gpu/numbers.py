"""Parts of the GPU check on numbers: error budgets in every dtype, every shipped configuration, equal bits."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import get_args

import torch
import triton

from bench.harness.block_ops import BLOCK_OPS, Mode
from bench.harness.checks import Finding, Setting
from bench.harness.directions import architecture, forced, subject_of
from bench.harness.rows import dtype_name
from bench.harness.subjects import (
    Subject,
    attention_backward,
    attention_forward,
    block_op,
    dtypes,
    every_launcher,
    flow_step,
)
from fastflow.kernels.attention.config import CONFIGS, DIRECTIONS, WIDTHS, Config
from tests.gpu.parts import Case

REPEATS = 100
_TUNED_WIDTHS = (64, 128)  # head dims of ``tuning_candidates``
_ODD_WIDTHS = (1, 63, 100, 1000, 1152)  # of the block ops
_ROW_WIDTHS = tuple(n for i in range(6, 15) for n in ((1 << i) - 1, 1 << i))
_NORMS = ("layer norm, modulated", "RMS norm", "gated add + layer norm")


def dtype_budgets(setting: Setting) -> list[Case]:
    """Check every launcher in every dtype; attention at several head dims, masks, groups; block ops at odd widths."""
    widths = (16,) if setting.dry else (64, 72, 128)
    subjects = [s for dtype in dtypes(setting) for s in _budgets(setting, dtype, widths)]
    return [Case(s.name, s.findings) for s in subjects]


def _budgets(setting: Setting, dtype: torch.dtype, widths: tuple[int, ...]) -> Iterator[Subject]:
    yield from every_launcher(setting, dtype, widths[0])
    for width in widths[1:]:
        for fields in ({"tangents": ""}, {}, {"K": 3}):
            yield attention_forward(setting, dtype, width=width, **fields)
        for fields in ({"h": False}, {}):
            yield attention_backward(setting, dtype, width=width, **fields)
    yield flow_step(setting, dtype, drawn=True, row_size=64 if setting.dry else 4096)
    for name, mode, width in itertools.product(BLOCK_OPS, get_args(Mode), () if setting.dry else _ODD_WIDTHS):
        if width > 1 or name != "RoPE":  # which rotates pairs
            yield block_op(setting, dtype, name, mode, width)
    if setting.dry and dtype != torch.float32:
        return
    for fields in ({"is_causal": True}, {"mask": "bool-row"}, {"mask": "bias"}, {"Hk": 1}):
        yield attention_forward(setting, dtype, width=widths[0], **fields)
        yield attention_backward(setting, dtype, width=widths[0], **fields)


def configurations(setting: Setting) -> list[Case]:
    """Check the tuning table's rows for this architecture and for float32, at their widths."""
    rows = itertools.product(_arches(setting), WIDTHS[:1] if setting.dry else WIDTHS, DIRECTIONS)
    attention = _configurations(setting, ((d, w, dtype, CONFIGS.get((arch, w, d))) for (arch, dtype), w, d in rows))
    return [*attention, *_row_widths(setting)]


def _row_widths(setting: Setting) -> Iterator[Case]:
    """Yield a case for each tile of the norms, whose programs hold whole rows: every power of two and one less."""
    dtype = dtypes(setting)[-1]
    for name, width in itertools.product(_NORMS, (16,) if setting.dry else _ROW_WIDTHS):
        subject = block_op(setting, dtype, name, "joint", width)
        yield Case(subject.name, subject.findings)


def tuning_candidates(setting: Setting) -> list[Case]:
    """Check the candidates of ``FASTFLOW_AUTOTUNE=1``: every row of a direction, at two widths."""
    _, (_, dtype) = _arches(setting)
    chosen = sorted({(d, c) for (_, _, d), c in CONFIGS.items()}, key=str)[: 2 if setting.dry else None]
    return _configurations(setting, ((d, w, dtype, c) for w in _TUNED_WIDTHS for d, c in chosen))


def _arches(setting: Setting) -> tuple[tuple[str, torch.dtype], tuple[str, torch.dtype]]:
    """Return the architectures of the table that apply here, each with a dtype it is for."""
    return ("fp32", torch.float32), (architecture(setting.device), torch.float16 if setting.dry else torch.bfloat16)


def _configurations(setting: Setting, shipped: Iterable[tuple[str, int, torch.dtype, Config | None]]) -> list[Case]:
    return [_configuration(setting, *x) for x in dict.fromkeys(shipped) if x[-1] is not None]


def _configuration(setting: Setting, direction: str, width: int, dtype: torch.dtype, chosen: Config) -> Case:
    subject = subject_of(setting, direction, width, dtype)
    name = f"{direction} {chosen} D {width} {dtype_name(dtype)}"

    def check() -> list[Finding]:
        try:
            with forced(direction, chosen):
                return [x._replace(name=f"{name}: {x.name}") for x in subject.findings()]
        except triton.runtime.errors.OutOfResources as error:
            return [Finding(name, None, f"{direction} D {width}: {error}")]

    return Case(name, check)


def same_bits(setting: Setting) -> list[Case]:
    """Check that a hundred runs on the same input give the same bits."""
    repeats = 2 if setting.dry else REPEATS
    chosen = dtypes(setting)[-1]
    return [Case(s.name, _repeated(s, repeats)) for s in every_launcher(setting, chosen, 16 if setting.dry else 64)]


def _repeated(subject: Subject, repeats: int) -> Callable[[], list[Finding]]:
    def check() -> list[Finding]:
        first = subject.kernels()
        differing = dict.fromkeys(first, 0)
        for _ in range(repeats - 1):
            for name, x in subject.kernels().items():
                differing[name] += not torch.equal(x, first[name])
        return [Finding(f"{subject.name} {name}", float(2 * n), f"{n} differ") for name, n in differing.items()]

    return check
