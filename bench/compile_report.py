"""Compile every kernel in every shipped configuration, without a GPU, and report what the compiler made of it.

    python -m bench.compile_report                  # all families: print the table, write bench/results/compile_*
    python -m bench.compile_report attention        # the rows of one family
    python -m bench.compile_report --case REGEX     # compile the cases that match, print rows as JSON, write nothing
    python -m bench.compile_report --case REGEX --tile 64,64,4,3  # at this BLOCK_M, BLOCK_N, warps, stages instead

A family takes part by a ``compile_cases.py`` (kernels/_compile.py). Registers and spills come from cuobjdump, part of
Triton's own package; rows of sm_90 carry their instruction budget (bench/_budget.py), printed last and written to
bench/results/instruction_budget.md. A spill count may only shrink: a run that would raise one writes nothing, unless
--allow-growth.
"""

import argparse
import dataclasses
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench import _budget, _rows, instruction_budget

ROOT = Path(__file__).resolve().parent.parent
ROWS = instruction_budget.ROWS
TABLE = ROWS.with_suffix(".md")
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
TENSOR_MEMORY_LIMIT = 512
_TENSOR_CORE_OPS = ("HGMMA", "HMMA", "IMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "v_mfma")
_SASS_OP = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)


def families() -> list[str]:
    """The kernel families that declare compile cases."""
    return sorted(path.parent.name for path in (ROOT / "kernels").glob("*/compile_cases.py"))


def cases(family: str) -> list[Any]:
    return list(importlib.import_module(f"fastflow.kernels.{family}.compile_cases").compile_cases())


def source_hash(family: str) -> str:
    """A digest of the sources that the family's compiled kernels depend on."""
    digest = hashlib.sha256()
    for path in [*sorted((ROOT / "kernels").glob("*.py")), *sorted((ROOT / "kernels" / family).glob("*.py"))]:
        if path.name != "reference.py":
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def committed_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def measure(family: str, case: Any) -> dict[str, Any]:
    """Compile one case; what a table row says of it."""
    import triton
    from triton.backends.compiler import GPUTarget

    nvidia = case.arch.startswith("sm_")
    target = GPUTarget("cuda", int(case.arch[3:]), 32) if nvidia else GPUTarget("hip", case.arch, 64)
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages}
    compiled = triton.compile(_source(case), target=target, options=options)
    usage, sass = _disassembly(compiled.asm["cubin"]) if nvidia else ("", "")
    facts = _nvidia_facts(usage, sass) if nvidia else _amd_facts(compiled.asm["amdgcn"])
    row = {
        "family": family,
        "case": case.name,
        "arch": case.arch,
        "warps": case.num_warps,
        "stages": case.num_stages,
        **facts,
        "shared": compiled.metadata.shared,
        "tensor_memory": getattr(compiled.metadata, "tmem_size", 0),
        "triton": triton.__version__,
        "source": source_hash(family),
    }
    if case.arch == "sm_90":
        row["budget"] = _budget.budget(case, sass, row["registers"], row["shared"])
    return row


def faults(case: Any, row: dict[str, Any]) -> list[str]:
    """The bounds that a row breaks, each as a sentence."""
    found = []
    if row["shared"] > SHARED_LIMIT[case.arch]:
        found.append(f"shared memory {row['shared']} exceeds the {SHARED_LIMIT[case.arch]} of {case.arch}")
    if row["tensor_memory"] > TENSOR_MEMORY_LIMIT:  # the compiler says nothing and emits an empty kernel
        found.append(f"tensor memory {row['tensor_memory']} exceeds {TENSOR_MEMORY_LIMIT} columns")
    if case.spill_free and row["spills"]:
        found.append(f"{row['spills']} spill instructions in a configuration that may have none")
    if case.tensor_cores and not row["mma"]:
        found.append("no tensor-core instruction")
    sixteen_bit = any(str(ty).startswith(("*bf16", "*fp16")) for ty in case.signature.values())
    if case.tensor_cores and case.arch == "sm_90" and sixteen_bit and not row["mma"].get("HGMMA"):
        found.append("no wgmma")
    return [f"{row['family']} {row['case']}: {fault}" for fault in found]


def _source(case: Any) -> Any:
    from triton.compiler import ASTSource

    attrs: dict[tuple[int, ...], Any] = {}
    constants: dict[Any, Any] = dict(case.constants)

    def resolved(ty: Any, path: tuple[int, ...]) -> Any:
        if isinstance(ty, tuple):
            return tuple(resolved(inner, (*path, i)) for i, inner in enumerate(ty))
        if ty is None or ty == "1":
            constants[path] = None if ty is None else 1
            return "constexpr"
        if ty.endswith(":16"):
            attrs[path] = [["tt.divisibility", 16]]
        return ty.removesuffix(":16")

    names = case.kernel.arg_names
    signature = {name: resolved(case.signature.get(name, "constexpr"), (i,)) for i, name in enumerate(names)}
    return ASTSource(case.kernel, signature, constexprs=constants, attrs=attrs)


def _disassembly(cubin: bytes) -> tuple[str, str]:
    """What cuobjdump prints of the resources and of the instructions."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _cuobjdump("-res-usage", file.name), _cuobjdump("-sass", file.name)


def _nvidia_facts(usage: str, sass: str) -> dict[str, Any]:
    ops = Counter(_SASS_OP.findall(sass))
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "spills": ops["LDL"] + ops["STL"],
        "mma": {op: ops[op] for op in _TENSOR_CORE_OPS if ops[op]},
    }


def _amd_facts(amdgcn: str) -> dict[str, Any]:
    """registers counts vector and accumulation registers together, spills the vector registers spilled."""
    mma = len(re.findall(r"^\s+v_mfma_", amdgcn, re.MULTILINE))
    return {
        "registers": int(re.search(r"\.vgpr_count:\s+(\d+)", amdgcn)[1]),
        "spills": int(re.search(r"\.vgpr_spill_count:\s+(\d+)", amdgcn)[1]),
        "mma": {"v_mfma": mma} if mma else {},
    }


@functools.cache
def _tool() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def _cuobjdump(option: str, path: str) -> str:
    return subprocess.run([_tool(), option, path], check=True, capture_output=True, text=True).stdout


def _tile(text: str) -> tuple[int, int, int, int]:
    block_m, block_n, num_warps, num_stages = map(int, text.split(","))
    return block_m, block_n, num_warps, num_stages


def _tiled(case: Any, tile: tuple[int, int, int, int]) -> Any:
    block_m, block_n, num_warps, num_stages = tile
    constants = {**case.constants, "BLOCK_M": block_m, "BLOCK_N": block_n}
    return dataclasses.replace(case, constants=constants, num_warps=num_warps, num_stages=num_stages)


_work: list[tuple[str, Any]] = []  # inherited by the forked workers: kernels cannot be pickled


def _measure_nth(n: int) -> dict[str, Any]:
    return measure(*_work[n])


def measure_all(work: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Rows of (family, case) pairs, compiled in as many processes as there are cores."""
    _work[:] = work
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return pool.map(_measure_nth, range(len(work)), chunksize=1)


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "Made by `python -m bench.compile_report`: what the compiler made of each kernel, no GPU involved.",
        "Spills are LDL and STL instructions (AMD: spilled vector registers).",
        "",
        "| family | case | arch | warps | stages | registers | spills | shared KB | tensor-core instructions |",
        "|---|---|---|--:|--:|--:|--:|--:|---|",
    ]
    for r in rows:
        mma = ", ".join(f"{n} {op}" for op, n in r["mma"].items())
        lines.append(
            f"| {r['family']} | {r['case']} | {r['arch']} | {r['warps']} | {r['stages']} | {r['registers']} "
            f"| {r['spills']} | {r['shared'] / 1024:.0f} | {mma} |"
        )
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", default=families())
    parser.add_argument("--case", help="regular expression on 'family case arch': print JSON rows, write nothing")
    parser.add_argument(
        "--tile", action="append", type=_tile, metavar="M,N,WARPS,STAGES", help="with --case: not the table's"
    )
    parser.add_argument("--allow-growth", action="store_true", help="write even where a spill count grew")
    args = parser.parse_args()
    if args.tile and not args.case:
        parser.error("--tile needs --case")

    work = [(family, case) for family in args.families for case in cases(family)]
    if args.case:
        pattern = re.compile(args.case)
        work = [(f, c) for f, c in work if pattern.search(f"{f} {c.name} {c.arch}")]
        if args.tile:
            work = [(f, _tiled(c, tile)) for f, c in work for tile in args.tile]
    rows = measure_all(work)
    broken = [fault for (_, case), row in zip(work, rows) for fault in faults(case, row)]
    if args.case:
        print("\n".join(map(json.dumps, rows)))
    else:
        old = {(r["family"], r["case"], r["arch"]): r["spills"] for r in committed_rows()}
        grown = [r for r in rows if r["spills"] > old.get((r["family"], r["case"], r["arch"]), r["spills"])]
        broken += [f"{r['family']} {r['case']} {r['arch']}: spills grew to {r['spills']}" for r in grown]
        kept = [r for r in committed_rows() if r["family"] in set(families()) - set(args.families)]
        rows = sorted(kept + rows, key=lambda r: r["family"])
        budgets = instruction_budget.report(rows, _rows.read())
        print(table(rows), budgets, sep="\n")
        if not grown or args.allow_growth:
            ROWS.parent.mkdir(exist_ok=True)
            ROWS.write_text("".join(json.dumps(r) + "\n" for r in rows))
            TABLE.write_text(table(rows))
            instruction_budget.TABLE.write_text(budgets, encoding="utf-8")
    print("\n".join(broken), file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "0"
    sys.exit(main())
