"""Make random calls of every op and print the wrong ones: ``python -m tests.fuzz --calls 3000 --seed 0``."""

import argparse
import logging
import os
import sys
import time

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from .judge import OPS, fault


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--op", choices=list(OPS), action="append")
    parser.add_argument("--index", type=int, help="make one call only")
    parser.add_argument("--backend", default="auto")
    arguments = parser.parse_args()
    logging.getLogger("fastflow").setLevel(logging.ERROR)
    ops, started, wrong = arguments.op or list(OPS), time.perf_counter(), 0
    indices = range(arguments.calls) if arguments.index is None else [arguments.index]
    for index in indices:
        text = fault(ops[index % len(ops)], arguments.seed, index, arguments.backend)
        if text is not None:
            wrong += 1
            print(text, end="\n\n", flush=True)
    print(f"{len(indices)} calls, {wrong} wrong, {time.perf_counter() - started:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
