"""Compile every kernel in every shipped configuration, without a GPU, and report registers, spills and instructions.

    python -m bench.compiler                  # all families: print the table, write bench/results/compile_report.*
    python -m bench.compiler attention        # update the rows of one family
    python -m bench.compiler --case REGEX     # compile the cases that match, print rows as JSON, write nothing
    python -m bench.compiler --case REGEX --tile 64,64,4,3  # with this BLOCK_M, BLOCK_N, warps, stages instead

A family takes part if it has a ``compile_cases.py`` (kernels/_common/compile_case.py). Registers and spills come from
cuobjdump, which ships with Triton. Rows of sm_90 have an instruction budget (bench/compiler/budget.py), printed last
and written to bench/results/instruction_budget.md. If a spill count grew, nothing is written without --allow-growth.
"""

import argparse
import dataclasses
import json
import os
import re
import sys
from typing import Any

from bench.compiler import budget_table, report
from bench.harness.rows import read


def _tile(text: str) -> tuple[int, int, int, int]:
    block_m, block_n, num_warps, num_stages = map(int, text.split(","))
    return block_m, block_n, num_warps, num_stages


def _tiled(case: Any, tile: tuple[int, int, int, int]) -> Any:
    block_m, block_n, num_warps, num_stages = tile
    constants = {**case.constants, "BLOCK_M": block_m, "BLOCK_N": block_n}
    return dataclasses.replace(case, constants=constants, num_warps=num_warps, num_stages=num_stages)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=report.families())
    parser.add_argument("--case", help="regular expression on 'family case arch': print JSON rows, write nothing")
    parser.add_argument(
        "--tile", action="append", type=_tile, metavar="M,N,WARPS,STAGES", help="with --case: in place of the table's"
    )
    parser.add_argument("--allow-growth", action="store_true", help="write even if a spill count grew")
    args = parser.parse_args(arguments)
    if args.tile and not args.case:
        parser.error("--tile needs --case")

    work = [(family, case) for family in args.families for case in report.cases(family)]
    if args.case:
        pattern = re.compile(args.case)
        work = [(f, c) for f, c in work if pattern.search(f"{f} {c.name} {c.arch}")]
        if args.tile:
            work = [(f, _tiled(c, tile)) for f, c in work for tile in args.tile]
    rows = report.measure_all(work)
    broken = [fault for (_, case), row in zip(work, rows) for fault in report.faults(case, row)]
    broken += [text for family in args.families for text in report.uncovered(family)]
    if args.case:
        print("\n".join(map(json.dumps, rows)))
    else:
        old = {(r["family"], r["case"], r["arch"]): r["spills"] for r in report.committed_rows()}
        grown = [r for r in rows if r["spills"] > old.get((r["family"], r["case"], r["arch"]), r["spills"])]
        broken += [f"{r['family']} {r['case']} {r['arch']}: spills grew to {r['spills']}" for r in grown]
        kept = [r for r in report.committed_rows() if r["family"] in set(report.families()) - set(args.families)]
        rows = sorted(kept + rows, key=lambda r: r["family"])
        budgets = budget_table.report(rows, read())
        print(report.table(rows), budgets, sep="\n")
        if not grown or args.allow_growth:
            report.ROWS.parent.mkdir(exist_ok=True)
            report.ROWS.write_text("".join(json.dumps(r) + "\n" for r in rows))
            report.TABLE.write_text(report.table(rows))
            budget_table.TABLE.write_text(budgets, encoding="utf-8")
    print("\n".join(broken), file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"
    sys.exit(main())
