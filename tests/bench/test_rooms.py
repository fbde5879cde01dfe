"""The rooms of ``bench/`` and ``tests/gpu`` import each other one way, and nothing outside ``tests/`` imports it."""

import ast
import graphlib
from pathlib import Path

from bench.harness.rows import ROOT


def imported(path: Path):
    """The modules that a file imports anywhere, in functions too; of ``from a import b`` both a and a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_nothing_outside_tests_imports_tests():
    files = [path for top in ("bench", "fastflow", "kernels") for path in (ROOT / top).rglob("*.py")]
    assert [path for path in files if any(name.split(".")[0] == "tests" for name in imported(path))] == []


def test_imports_form_no_cycle():
    files = [*(ROOT / "bench").rglob("*.py"), *(ROOT / "tests" / "gpu").rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    graph = {name: {other for other in imported(path) if other in modules} for name, path in modules.items()}
    assert len(graph["bench.report.build"]) > 3
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
