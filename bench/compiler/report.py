"""Compile kernels without a GPU, and report registers, spills and instructions: rows, bounds and the table."""

import ast
import functools
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from bench.compiler import budget
from bench.compiler.budget_table import ROWS
from bench.harness.rows import ROOT
from bench.report import markdown

TABLE = ROWS.with_suffix(".md")
SHARED_LIMIT = {"sm_80": 163 << 10, "sm_86": 99 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
TENSOR_MEMORY_LIMIT = 512
_PYTORCH_ONLY = ("reference.py", "cpu.py", "blocks.py", "aten.py", "short.py")  # of kernels/<family>
_TENSOR_CORE_OPS = ("HGMMA", "HMMA", "IMMA", "QGMMA", "UTCHMMA", "UTCQMMA", "v_mfma")
_SASS_OP = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_]*)", re.MULTILINE)


def families() -> list[str]:
    """Return the kernel families that have a ``compile_cases.py``."""
    return sorted(path.parent.name for path in (ROOT / "kernels").glob("*/compile_cases.py"))


def cases(family: str) -> list[Any]:
    return list(importlib.import_module(f"fastflow.kernels.{family}.compile_cases").compile_cases())


def uncovered(family: str) -> list[str]:
    """Return the configurations that the family ships and its compile cases miss; [] without a tuning table."""
    module = importlib.import_module(f"fastflow.kernels.{family}.compile_cases")
    missing = module.uncovered(cases(family)) if hasattr(module, "uncovered") else []
    return [f"{family} {text}" for text in missing]


def source_hash(family: str) -> str:
    """Return a digest of the sources that the family's compiled kernels depend on.

    Comments, docstrings and formatting do not count, nor does the code that only PyTorch runs.
    """
    digest = hashlib.sha256()
    for folder in ("_common", family):
        for path in sorted((ROOT / "kernels" / folder).glob("*.py")):
            if path.name not in _PYTORCH_ONLY:
                digest.update(f"{folder}/{path.name}\0{code(path.read_text())}\0".encode())
    return digest.hexdigest()[:16]


def code(source: str) -> str:
    """Return a module's syntax tree as text, without docstrings; comments and formatting are not part of it."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def committed_rows() -> list[dict[str, Any]]:
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.exists() else []


def measure(family: str, case: Any) -> dict[str, Any]:
    """Compile one case and return its row."""
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
        row["budget"] = budget.budget(case, sass, row["registers"], row["shared"])
    return row


def faults(case: Any, row: dict[str, Any]) -> list[str]:
    """Return the bounds that a row breaks, each as a sentence."""
    found = []
    if row["shared"] > SHARED_LIMIT[case.arch]:
        found.append(f"shared memory {row['shared']} exceeds the {SHARED_LIMIT[case.arch]} of {case.arch}")
    if row["tensor_memory"] > TENSOR_MEMORY_LIMIT:  # the compiler emits an empty kernel without an error
        found.append(f"tensor memory {row['tensor_memory']} exceeds {TENSOR_MEMORY_LIMIT} columns")
    if case.spill_free and row["spills"]:
        found.append(f"{row['spills']} spill instructions in a configuration that must have none")
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
    """Return cuobjdump's output on the resources and on the instructions."""
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
    """Count vector and accumulation registers together, and spilled vector registers."""
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


_work: list[tuple[str, Any]] = []  # inherited by the forked workers: kernels cannot be pickled


def _measure_nth(n: int) -> dict[str, Any]:
    return measure(*_work[n])


def measure_all(work: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """Compile (family, case) pairs in one process per core and return their rows."""
    _work[:] = work
    with multiprocessing.get_context("fork").Pool(os.cpu_count()) as pool:
        return pool.map(_measure_nth, range(len(work)), chunksize=1)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the table as Markdown."""
    head = ["family", "case", "arch", "warps", "stages", "registers", "spills", "shared KB", "tensor-core instructions"]
    text = ("family", "case", "arch", "tensor-core instructions")
    body = [
        [
            *(r[name] for name in ("family", "case", "arch", "warps", "stages", "registers", "spills")),
            f"{r['shared'] / 1024:.0f}",
            ", ".join(f"{n} {op}" for op, n in r["mma"].items()),
        ]
        for r in rows
    ]
    lines = [
        "Made by `python -m bench.compiler` without a GPU: registers, spills, shared memory, tensor-core instructions.",
        "Spills are LDL and STL instructions (AMD: spilled vector registers).",
        "",
        *markdown.table(head, body, text),
    ]
    return "\n".join(lines) + "\n"
