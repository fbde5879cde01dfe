"""Parts of the GPU check on numbers: every dtype's error budget, every shipped configuration, the same bits twice."""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import triton
from torch import Tensor

from bench._gpu_part import Case, Finding, Setting
from bench._gpu_subjects import Subject, attention_backward, attention_forward, dtypes, every_launcher, flow_step
from fastflow.kernels.attention import backward, config, forward
from fastflow.kernels.attention.config import CONFIGS, DIRECTIONS, WIDTHS, Config

REPEATS = 100
_TUNED_WIDTHS = (64, 128)  # at which the tuner's candidates of all architectures are tried


def dtype_budgets(setting: Setting) -> list[Case]:
    """Every launcher in every dtype, attention at the head dims that matter and with what else changes its kernels."""
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
    for fields in ({"is_causal": True}, {"mask": "bool-row"}, {"mask": "bias"}, {"Hk": 1}):
        yield attention_forward(setting, dtype, width=widths[0], **fields)
        yield attention_backward(setting, dtype, width=widths[0], **fields)
    yield flow_step(setting, dtype, drawn=True, row_size=64 if setting.dry else 4096)


def configurations(setting: Setting) -> list[Case]:
    """The tuning table's rows for this architecture and for float32, at their widths."""
    rows = itertools.product(_arches(setting), WIDTHS[:1] if setting.dry else WIDTHS, DIRECTIONS)
    return _configurations(setting, ((d, w, dtype, CONFIGS.get((arch, w, d))) for (arch, dtype), w, d in rows))


def tuning_candidates(setting: Setting) -> list[Case]:
    """What ``FASTFLOW_AUTOTUNE=1`` may choose from: every row of a direction, at two widths."""
    _, (_, dtype) = _arches(setting)
    chosen = sorted({(d, c) for (_, _, d), c in CONFIGS.items()}, key=str)[: 2 if setting.dry else None]
    return _configurations(setting, ((d, w, dtype, c) for w in _TUNED_WIDTHS for d, c in chosen))


def _arches(setting: Setting) -> tuple[tuple[str, torch.dtype], tuple[str, torch.dtype]]:
    """The table's architectures that apply here, with the dtype each is for."""
    return ("fp32", torch.float32), (architecture(setting.device), torch.float16 if setting.dry else torch.bfloat16)


def _configurations(setting: Setting, shipped: Iterable[tuple[str, int, torch.dtype, Config | None]]) -> list[Case]:
    return [_configuration(setting, *x) for x in dict.fromkeys(shipped) if x[-1] is not None]


def _configuration(setting: Setting, direction: str, width: int, dtype: torch.dtype, chosen: Config) -> Case:
    subject = subject_of(setting, direction, width, dtype)
    name = f"{direction} {chosen} D {width} {str(dtype).removeprefix('torch.')}"

    def check() -> list[Finding]:
        try:
            with forced(direction, chosen):
                return [x._replace(name=f"{name}: {x.name}") for x in subject.findings()]
        except triton.runtime.errors.OutOfResources as error:
            return [Finding(name, None, f"{direction} D {width}: {error}")]

    return Case(name, check)


def subject_of(setting: Setting, direction: str, width: int, dtype: torch.dtype, **fields: Any) -> Subject:
    """The attention launcher that launches the kernel of a direction. fields: of the tests' Problem."""
    side, _, mode = direction.partition("-")
    if side == "forward":
        kind = {"plain": {"tangents": ""}, "": {}, "many": {"K": 3}}[mode]
        return attention_forward(setting, dtype, width=width, **(kind | fields))
    kind = {"h": False} if mode == "plain" else {}
    return attention_backward(setting, dtype, width=width, **(kind | fields))


def forced(direction: str, chosen: Config) -> AbstractContextManager[object]:
    """A direction launched with the chosen configuration, its rivals not launched, the others as the table says."""
    side, _, mode = direction.partition("-")

    def config_for(x: Tensor, width: int, name: str) -> Config | None:
        if name == direction:
            return chosen
        if name == f"{side}-joint" and mode == "primal":
            return None
        return config.config_for(x, width, name)

    return mock.patch.object(module_of(direction), "config_for", config_for)


def module_of(direction: str) -> ModuleType:
    return forward if direction.startswith("forward") else backward


def architecture(device: torch.device) -> str:
    """Whose rows of the table apply."""
    return "sm_90" if device.type == "cpu" else config._arch(device)


def same_bits(setting: Setting) -> list[Case]:
    """The same input, a hundred times."""
    repeats = 3 if setting.dry else REPEATS
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
