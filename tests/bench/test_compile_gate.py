"""The committed compile report: of these sources, within bounds, and shown by its table."""

import shutil

import pytest

pytest.importorskip("triton")

from bench.compiler import report as compile_report
from fastflow.kernels._common.compile_case import ARCHES

REFRESH = "python -m bench.compiler"
BLOCK_FAMILIES = {"activation", "gate", "norm", "rope"}


def key(row):
    return row["family"], row["case"], row["arch"]


@pytest.fixture(scope="module")
def committed():
    return {key(row): row for row in compile_report.committed_rows()}


@pytest.mark.parametrize("family", compile_report.families())
def test_committed_report_is_of_these_sources_and_within_bounds(family, committed):
    rows = {k: row for k, row in committed.items() if k[0] == family}
    sources = {row["source"] for row in rows.values()}
    assert sources == {compile_report.source_hash(family)}, f"the kernels changed since the report: run {REFRESH}"
    cases = {(family, case.name, case.arch): case for case in compile_report.cases(family)}
    assert cases.keys() == rows.keys(), f"the cases changed since the report: run {REFRESH}"
    assert [fault for k, row in rows.items() for fault in compile_report.faults(cases[k], row)] == []


@pytest.mark.parametrize("family", sorted(set(compile_report.families()) & BLOCK_FAMILIES))
def test_block_ops_spill_nowhere_at_the_widths_of_common_models(family, committed):
    cases = [c for c in compile_report.cases(family) if c.name.endswith("bf16")]
    found = {arch: [c for c in cases if c.arch == arch] for arch in ARCHES}
    widths = {arch: {w for c in of_arch if (w := c.constants.get("D"))} for arch, of_arch in found.items()}
    assert all(found.values())
    if family != "rope":  # whose D is a head's
        assert all(not of_arch or {384, 768, 1152, 1536} <= of_arch for of_arch in widths.values())
    for case in cases:
        if case.constants.get("D", 0) <= 1536:
            assert case.spill_free, case.name
            assert committed[family, case.name, case.arch]["spills"] == 0


def test_table_shows_the_committed_rows(committed):
    assert compile_report.TABLE.read_text() == compile_report.table(list(committed.values()))


def test_a_fault_is_seen(committed):
    case = next(c for c in compile_report.cases("attention") if c.spill_free and c.tensor_cores)
    row = committed["attention", case.name, case.arch]
    assert compile_report.faults(case, row) == []
    for change, word in (
        ({"shared": 1 << 20}, "shared memory"),
        ({"spills": 1}, "spill"),
        ({"mma": {}}, "tensor-core"),
        ({"mma": {"HMMA": 8}}, "wgmma"),
    ):
        assert any(word in fault for fault in compile_report.faults(case, row | change))


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """A copy of the kernels that may be edited."""
    shutil.copytree(compile_report.ROOT / "kernels", tmp_path / "kernels")
    monkeypatch.setattr(compile_report, "ROOT", tmp_path)
    return tmp_path / "kernels"


@pytest.mark.parametrize("path", ["_common/philox.py", "flow_step/_tile.py", "flow_step/interpolate.py"])
def test_code_that_is_compiled_changes_the_hash(kernels, path):
    before, source = compile_report.source_hash("flow_step"), (kernels / path).read_text()
    (kernels / path).write_text(source + "\nEXTRA = 1\n")
    assert compile_report.source_hash("flow_step") != before
    (kernels / path).unlink()
    assert compile_report.source_hash("flow_step") != before


@pytest.mark.parametrize("name", ["reference.py", "cpu.py", "aten.py", "short.py"])
def test_code_that_only_pytorch_runs_does_not_change_the_hash(kernels, name):
    before = compile_report.source_hash("attention")
    (kernels / "attention" / name).write_text("EXTRA = 1\n")
    assert compile_report.source_hash("attention") == before
    (kernels / "attention" / "unknown.py").write_text("EXTRA = 1\n")
    assert compile_report.source_hash("attention") != before


def test_comments_docstrings_and_formatting_do_not_change_the_hash():
    one = '"""Doc."""\ndef f(x):\n    """Doc."""\n    return x + 1  # reason\n'
    other = "def f(\n    x,\n):\n    'Another.'\n    return x + 1\n"
    assert compile_report.code(one) == compile_report.code(other)
    assert compile_report.code(one) != compile_report.code(one.replace("+ 1", "+ 2"))
    assert compile_report.code("x = 'text'") != compile_report.code("x = 'other'")


@pytest.mark.parametrize("family", compile_report.families())
def test_every_shipped_configuration_has_a_compile_case(family):
    assert compile_report.uncovered(family) == []


def test_a_missing_case_is_seen(monkeypatch):
    every = compile_report.cases("attention")
    monkeypatch.setattr(
        compile_report,
        "cases",
        lambda _: [c for c in every if (c.arch, c.constants.get("HEAD_DIM")) != ("sm_100", 256)],
    )
    assert any("width 256 bf16 sm_100" in text for text in compile_report.uncovered("attention"))
