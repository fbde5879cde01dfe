"""The fastest configuration of every attention kernel on this GPU: ``python -m bench.tune --head-dims 64,128 --write``.

Around the table's row and among the rows of all architectures, each candidate is compiled and compared with float64,
at odd lengths (in parallel) and at the timed shape; what fails is dropped with the reason. The others are timed in
turns. Every timing is a row in bench/results/<device>.jsonl; --write puts the fastest into kernels/attention/config.py.
"""

import argparse
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from unittest import mock

import torch
import triton

from bench import _gpu_part, _rows
from bench._gpu_numbers import architecture, forced, module_of, subject_of
from bench._gpu_part import Setting
from bench._gpu_subjects import Subject
from bench._timing import captured, interleaved, percentiles, rounds_for
from bench._tune_table import Timed, chosen, rewritten
from fastflow.kernels.attention.config import CONFIGS, DIRECTIONS, WIDTHS, Config

SOURCE = _rows.ROOT / "kernels" / "attention" / "config.py"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
TANGENTS = 4  # of forward-many
_PRODUCTS = {  # matrix products of 2 Nq Nk D operations: README.md of kernels/attention counts them
    "forward-plain": 2, "forward": 6, "forward-many": 2 + 4 * TANGENTS,
    "dkdv-plain": 4, "dkdv-primal": 10, "dkdv-joint": 12,
    "dq-plain": 3, "dq-primal": 8, "dq-joint": 9,
}  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """What is tuned: a direction at a head dim, on ``[B, H, N, D]``."""

    setting: Setting
    direction: str
    head_dim: int
    dtype: torch.dtype
    shape: tuple[int, int, int]

    @property
    def arch(self) -> str:
        """The first half of the table's key."""
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
    """The table's row first, then its neighbours and what the table has for this direction anywhere."""
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
    """What speaks against a configuration: it does not compile, or does not fit, or is wrong; None if nothing does."""
    try:
        with forced(direction, config):
            faults = [x for x in subject.findings() if x.is_fault]
    except triton.runtime.errors.OutOfResources as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{faults[0].name}: {faults[0].share:.1f} times the error that is allowed" if faults else None


def launcher(kernel: Kernel, subject: Subject, config: Config) -> Callable[[Config], None]:
    """The launch of the direction's kernel alone, on tensors that it fills anew each time."""
    launches = []

    def seen(config: Config, launch: Callable[[Config], None], x: object, direction: str, key: object) -> Config:
        if direction == kernel.direction:
            launches.append(launch)
        return config

    with mock.patch.object(module_of(kernel.direction), "tuned", seen), forced(kernel.direction, config):
        subject.kernels()
    return launches[0]


def tune(
    kernel: Kernel, seconds: float, pool: _gpu_part.Workers | None, offered: Sequence[Config] | None = None
) -> tuple[list[_rows.Row], dict[Config, str]]:
    """A row for each configuration that is right, the fastest first, and the reasons against the others."""
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
    """On a GPU as a graph: a kernel may take less time than its launch."""
    return captured(call) if kernel.setting.device.type == "cuda" else call


def _why_not_at_odd_lengths(kernel: Kernel, config: Config) -> str | None:
    return why_not(kernel.subject(), kernel.direction, config)


def _row(kernel: Kernel, config: Config, times: list[float]) -> _rows.Row:
    B, H, N = kernel.shape
    p20, p50, p80 = percentiles(times)
    flops = 2 * _PRODUCTS[kernel.direction] * B * H * N * N * kernel.head_dim
    return {
        "op": "attention",
        "mode": kernel.direction,
        "shape": [*kernel.shape, kernel.head_dim],
        "dtype": str(kernel.dtype).removeprefix("torch."),
        "implementation": "fastflow kernel",
        "launch": "graph" if kernel.setting.device.type == "cuda" else "eager",
        "config": asdict(config),
        "ms": float(f"{p50:.4g}"),
        "ms_p20": float(f"{p20:.4g}"),
        "ms_p80": float(f"{p80:.4g}"),
        "rounds": len(times),
        "tflops": float(f"{flops / p50 / 1e9:.4g}"),
        **_rows.machine(),
    }


def fastest(rows: Mapping[str, _rows.Row]) -> dict[str, Timed]:
    """Directions to what the table should say of them."""
    return {
        direction: Timed(Config(**r["config"]), r["ms"], f"{r['ms']} ms at {r['shape']}, {r['device']}")
        for direction, r in rows.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", default="attention", choices=["attention"])
    parser.add_argument("--head-dims", type=_numbers, default=(64, 72, 128), help="separated by commas")
    parser.add_argument("--directions", type=lambda text: tuple(text.split(",")), default=DIRECTIONS)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shape", type=_numbers, default=(1, 16, 2048), help="B,H,N")
    parser.add_argument("--seconds", type=float, default=5.0, help="of timing for each kernel, about")
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--write", action="store_true", help="put the fastest into kernels/attention/config.py")
    args = parser.parse_args(arguments)
    if unknown := set(args.directions) - set(DIRECTIONS):
        parser.error(f"directions must be among {', '.join(DIRECTIONS)}, got {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        parser.error("there is no GPU to tune for")
    setting = Setting(torch.device("cuda"), dry=False, workers=args.workers)
    with _gpu_part.workers(setting) as pool:
        for head_dim in args.head_dims:
            kernels = [Kernel(setting, d, head_dim, DTYPES[args.dtype], args.shape) for d in args.directions]
            best = dict(_tuned(kernels, args.seconds, pool))
            if args.write and best:
                rows = chosen(fastest(best))
                SOURCE.write_text(rewritten(SOURCE.read_text(), kernels[0].arch, kernels[0].width, rows))
                print(f"{SOURCE.relative_to(_rows.ROOT)}: {', '.join(rows)} of {kernels[0].arch}, {kernels[0].width}")
    return 0


def _tuned(
    kernels: Sequence[Kernel], seconds: float, pool: _gpu_part.Workers | None
) -> Iterator[tuple[str, _rows.Row]]:  # fmt: skip
    for kernel in kernels:
        rows, refused = tune(kernel, seconds, pool)
        _rows.append(rows)
        print(f"{kernel.direction}, D {kernel.head_dim}: {len(rows)} timed, {len(refused)} refused")
        for row in rows[:5]:
            print(f"  {row['ms']:8.4f} ms {row['tflops']:6.0f} TFLOP/s  {Config(**row['config'])}")
        for config, reason in refused.items():
            print(f"  refused {config}: {reason}")
        if rows:
            yield kernel.direction, rows[0]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
