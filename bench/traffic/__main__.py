"""Count bytes and launches in Triton's interpreter, and write bench/results/memory_traffic.*, without a GPU.

python -m bench.traffic                  # every op and the launches: some minutes
python -m bench.traffic "layer norm"     # the ops whose names contain the text; the other rows stay
python -m bench.traffic --table          # the table again, from the rows
"""

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from bench.harness.block_ops import KERNEL_OPS
from bench.harness.interpreter import language_patched_once
from bench.traffic import launches, moved, report


def _of_op(name: str) -> list[report.Row]:
    with language_patched_once():
        return list(moved.rows([name]))


def _of_block() -> list[report.Row]:
    with language_patched_once():
        return launches.rows()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=[""], help="count only ops whose names contain one of these")
    parser.add_argument("--table", action="store_true", help="count nothing")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args(arguments)
    chosen = [op for op in KERNEL_OPS if any(name.lower() in op.lower() for name in args.names)]
    rows = report.recorded()
    if not args.table:
        with ProcessPoolExecutor(args.workers) as pool:
            block, counted = pool.submit(_of_block), list(pool.map(_of_op, chosen))
        kept = [row for row in rows if "floor" in row and row["op"] not in chosen]
        found = kept + [row for of_op in counted for row in of_op]
        rows = sorted(found, key=lambda row: KERNEL_OPS.index(row["op"])) + block.result()
        report.ROWS.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = report.text(rows)
    report.TABLE.write_text(table)
    print(table)
    over = report.faults(rows)
    print("\n".join(over), file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
