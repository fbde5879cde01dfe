"""Time the candidate configurations of an attention kernel that are correct; reject the others with a reason."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from unittest import mock

import torch
import triton

from bench.harness.checks import Setting, Workers
from bench.harness.directions import architecture, forced, module_of, subject_of
from bench.harness.roofline import kernel_gemms
from bench.harness.rows import Row, dtype_name, machine, rounded
from bench.harness.subjects import Subject
from bench.harness.timing import captured, interleaved, percentiles, rounds_for
from fastflow.kernels.attention.config import CONFIGS, WIDTHS, Config

TANGENTS = 4  # of forward-many


@dataclass(frozen=True)
class Kernel:
    """An attention kernel: a direction at a head dim, timed at ``shape``, ``(B, H, N)``."""

    setting: Setting
    direction: str
    head_dim: int
    dtype: torch.dtype
    shape: tuple[int, int, int]

    @property
    def arch(self) -> str:
        """The architecture of the table's key, or ``"fp32"``."""
        return "fp32" if self.dtype == torch.float32 else architecture(self.setting.device)

    @property
    def width(self) -> int:
        return next(w for w in WIDTHS if self.head_dim <= w)

    def subject(self, **fields: int) -> Subject:
        return subject_of(self.setting, self.direction, self.head_dim, self.dtype, **fields)

    def timed_subject(self) -> Subject:
        B, H, N = self.shape
        many = {"K": TANGENTS} if self.direction == "forward-many" else {}
        subject = self.subject(B=B, Hq=H, Hk=H, Nq=N, Nk=N, **many)
        return replace(subject, expected=cache(subject.expected))


def candidates(kernel: Kernel) -> list[Config]:
    """Return the table's row, its neighbours, and the rows of this direction on all architectures and widths."""
    side = kernel.direction.partition("-")[0]
    present = CONFIGS.get((kernel.arch, kernel.width, kernel.direction))
    centre = present or CONFIGS[kernel.arch, kernel.width, f"{side}-primal"]
    near = itertools.product(
        *((n // 2, n, 2 * n) for n in (centre.block_m, centre.block_n)),
        (4, 8),
        range(centre.num_stages - 1, centre.num_stages + 2),
        (1, 2) if kernel.direction == "forward-many" else (1,),
    )
    found = [centre, *itertools.starmap(Config, near)]
    found += [row for (*_, direction), row in CONFIGS.items() if direction == kernel.direction]
    return [c for c in dict.fromkeys(found) if min(c.block_m, c.block_n) >= 16 and c.num_stages >= 1]


def why_not(subject: Subject, direction: str, config: Config) -> str | None:
    """Return why a configuration is rejected (it does not compile, does not fit, or is wrong), or None."""
    try:
        with forced(direction, config):
            faults = [x for x in subject.findings() if x.is_fault]
    except triton.runtime.errors.OutOfResources as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{faults[0].name}: {faults[0].share:.1f} times the error that is allowed" if faults else None


def launcher(kernel: Kernel, subject: Subject, config: Config) -> Callable[[Config], None]:
    """Return the launch of the direction's kernel alone, on the same tensors each time."""
    launches = []

    def seen(config: Config, launch: Callable[[Config], None], x: object, direction: str, key: object) -> Config:
        if direction == kernel.direction:
            launches.append(launch)
        return config

    with mock.patch.object(module_of(kernel.direction), "tuned", seen), forced(kernel.direction, config):
        subject.kernels()
    return launches[0]


def tune(
    kernel: Kernel, seconds: float, pool: Workers | None, offered: Sequence[Config] | None = None
) -> tuple[list[Row], dict[Config, str]]:
    """Return a row for each configuration that is correct, fastest first, and why the others were rejected."""
    offered = candidates(kernel) if offered is None else offered
    ask = partial(_why_not_at_odd_lengths, kernel)
    reasons = dict(zip(offered, map(ask, offered) if pool is None else pool.map(ask, offered, chunksize=1)))
    subject = kernel.timed_subject()
    for config in (c for c in offered if reasons[c] is None):
        reasons[config] = why_not(subject, kernel.direction, config)
    right = [c for c in offered if reasons[c] is None]
    refused = {c: reason for c, reason in reasons.items() if reason is not None}
    if not right:
        return [], refused
    launch = launcher(kernel, subject, right[0])
    calls = {str(c): _timed_call(kernel, partial(launch, c)) for c in right}
    times = interleaved(calls, rounds_for(calls[str(right[0])], seconds / len(right)))
    rows = [_row(kernel, c, times[str(c)]) for c in right]
    return sorted(rows, key=lambda row: row["ms"]), refused


def _timed_call(kernel: Kernel, call: Callable[[], object]) -> Callable[[], object]:
    # as a CUDA graph, because a kernel may take less time than its launch
    return captured(call) if kernel.setting.device.type == "cuda" else call


def _why_not_at_odd_lengths(kernel: Kernel, config: Config) -> str | None:
    return why_not(kernel.subject(), kernel.direction, config)


def _row(kernel: Kernel, config: Config, times: list[float]) -> Row:
    B, H, N = kernel.shape
    p20, p50, p80 = percentiles(times)
    flops = 2 * kernel_gemms(kernel.direction, TANGENTS) * B * H * N * N * kernel.head_dim
    return {
        "op": "attention",
        "mode": kernel.direction,
        "shape": [*kernel.shape, kernel.head_dim],
        "dtype": dtype_name(kernel.dtype),
        "implementation": "fastflow kernel",
        "launch": "graph" if kernel.setting.device.type == "cuda" else "eager",
        "config": asdict(config),
        "ms": rounded(p50),
        "ms_p20": rounded(p20),
        "ms_p80": rounded(p80),
        "rounds": len(times),
        "tflops": rounded(flops / p50 / 1e9),
        **machine(),
    }
