"""Find the fastest configuration of every attention kernel: ``python -m bench.tune --head-dims 64,128 --write``.

Candidates are the table's row, its neighbours, and the rows of all architectures. Each is compiled and compared with
float64, at odd lengths (in parallel) and at the timed shape; faulty ones are rejected with the reason, the others timed
in turns. Each timing is a row in bench/results/<device>.jsonl. --write updates kernels/attention/config.py.
"""

import argparse
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

import torch

from bench.harness import rows
from bench.harness.checks import Setting, Workers, workers
from bench.tune.table import Timed, chosen, rewritten
from bench.tune.tuner import Kernel, tune
from fastflow.kernels.attention.config import DIRECTIONS, Config

SOURCE = rows.ROOT / "kernels" / "attention" / "config.py"
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def fastest(found: Mapping[str, rows.Row]) -> dict[str, Timed]:
    """Return the table's entry of each direction, from the row of its fastest configuration."""
    return {
        direction: Timed(Config(**r["config"]), r["ms"], f"{r['ms']} ms at {r['shape']}, {r['device']}")
        for direction, r in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="?", default="attention", choices=["attention"])
    parser.add_argument("--head-dims", type=_numbers, default=(64, 72, 128), help="comma-separated")
    parser.add_argument("--directions", type=lambda text: tuple(text.split(",")), default=DIRECTIONS)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--shape", type=_numbers, default=(1, 16, 2048), help="B,H,N")
    parser.add_argument("--seconds", type=float, default=5.0, help="timing budget for each kernel")
    parser.add_argument("--workers", type=int, default=max(1, min(12, (os.cpu_count() or 1) - 2)))
    parser.add_argument("--write", action="store_true", help="write the fastest into kernels/attention/config.py")
    args = parser.parse_args(arguments)
    if unknown := set(args.directions) - set(DIRECTIONS):
        parser.error(f"directions must be among {', '.join(DIRECTIONS)}, got {', '.join(sorted(unknown))}")
    if not torch.cuda.is_available():
        parser.error("there is no GPU to tune for")
    setting = Setting(torch.device("cuda"), dry=False, workers=args.workers)
    with workers(setting) as pool:
        for head_dim in args.head_dims:
            kernels = [Kernel(setting, d, head_dim, DTYPES[args.dtype], args.shape) for d in args.directions]
            best = dict(_tuned(kernels, args.seconds, pool))
            if args.write and best:
                changes = chosen(fastest(best))
                SOURCE.write_text(rewritten(SOURCE.read_text(), kernels[0].arch, kernels[0].width, changes))
                print(f"{SOURCE.relative_to(rows.ROOT)}: {', '.join(changes)} of {kernels[0].arch}, {kernels[0].width}")
    return 0


def _tuned(kernels: Sequence[Kernel], seconds: float, pool: Workers | None) -> Iterator[tuple[str, rows.Row]]:
    """Tune kernel by kernel, record and print the rows, and yield each direction's fastest."""
    for kernel in kernels:
        timed, rejected = tune(kernel, seconds, pool)
        rows.append(timed)
        print(f"{kernel.direction}, D {kernel.head_dim}: {len(timed)} timed, {len(rejected)} rejected")
        for row in timed[:5]:
            print(f"  {row['ms']:8.4f} ms {row['tflops']:6.0f} TFLOP/s  {Config(**row['config'])}")
        for config, reason in rejected.items():
            print(f"  rejected {config}: {reason}")
        if timed:
            yield kernel.direction, timed[0]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


if __name__ == "__main__":
    sys.exit(main())
