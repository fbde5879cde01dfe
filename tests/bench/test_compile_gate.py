"""What the compiler makes of the kernels, checked without a GPU: against bounds, and against the committed report."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from bench.compiler import report as compile_report

REFRESH = "python -m bench.compiler"
LIVE = r"attention (forward|dkdv-joint|dq-joint) D 64 bf16 sm_90$|(forward|dkdv-primal) D 72 bf16 sm_90$|" + (
    r"forward D 72 bf16 sm_80$|forward D 64 bf16 sm_100$|forward D 64 bf16 gfx942$|forward D 64 fp32 sm_90$|row terms"
)


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


@pytest.mark.slow
def test_live_compilation_agrees_with_the_committed_report(committed):
    done = subprocess.run(
        [sys.executable, "-m", "bench.compiler", "--case", LIVE],
        cwd=compile_report.ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rows) >= 10
    for row in rows:
        recorded = committed[key(row)]
        if row["triton"] == recorded["triton"]:
            assert row["spills"] <= recorded["spills"], f"{key(row)} spills more than recorded"
            assert row["shared"] == recorded["shared"], key(row)
