"""Kernels compiled now, without a GPU, against the committed report and against the mathematics."""

import json
import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

from bench.compiler import report as compile_report

pytestmark = pytest.mark.slow
# Every architecture, direction and kind of dtype, by cases that compile fast.
SHIPPED = "|".join(
    [
        r"attention (forward|dkdv-joint|dq-joint) D 64 bf16 sm_90$",
        r"attention dkdv-primal D 72 bf16 sm_90$",
        r"attention forward D 64 bf16 (sm_80|sm_86|gfx942)$",
        r"attention dq-plain D 64 bf16 sm_100$",
        r"attention forward D 64 fp32 sm_90$",
        r"attention row terms",
        r"noise gaussian fp32 sm_90$",
    ]
)
TILED = "attention (forward D 64 bf16|forward D 72 bf16|dkdv-joint D 64 bf16 4 query.*|forward-plain D 64 fp32) sm_90$"
PROGRAM = f"""
from bench.compiler.__main__ import main
status = main(["--case", {SHIPPED!r}])
print("next", flush=True)
main(["attention", "--case", {TILED!r}, "--tile", "64,32,4,2"])
raise SystemExit(status)
"""


@pytest.fixture(scope="module")
def compiled():
    """Rows of shipped configurations, and of some cases at one tile, compiled by one process."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=compile_report.ROOT,
        env=os.environ | {"TRITON_INTERPRET": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    texts = done.stdout.partition("next\n")[::2]
    return done, [[json.loads(line) for line in text.splitlines()] for text in texts]


def key(row):
    return row["family"], row["case"], row["arch"]


def test_live_compilation_agrees_with_the_committed_report(compiled):
    done, (rows, _) = compiled
    committed = {key(row): row for row in compile_report.committed_rows()}
    assert done.returncode == 0, done.stderr
    assert len(rows) >= 10
    assert {row["arch"] for row in rows} == {row["arch"] for row in committed.values()}
    for row in rows:
        recorded = committed[key(row)]
        if row["triton"] == recorded["triton"]:
            assert row["spills"] <= recorded["spills"], f"{key(row)} spills more than recorded"
            assert row["shared"] == recorded["shared"], key(row)


def test_live_loops_multiply_what_the_mathematics_multiplies(compiled):
    done, (_, rows) = compiled
    found = {row["case"]: row["budget"] for row in rows}
    gemm = 2 * 64 * 32  # times the head dim
    assert {name: (x["tensor_flops"], x["math_flops"]) for name, x in found.items()} == {
        "forward D 64 bf16": (6 * gemm * 64, 6 * gemm * 64),
        "forward D 72 bf16": (6 * gemm * 80, 6 * gemm * 72),
        "dkdv-joint D 64 bf16 4 query heads a key head": (12 * gemm * 64, 12 * gemm * 64),
        "forward-plain D 64 fp32": (3 * 2 * gemm * 64, 2 * gemm * 64),
    }, done.stderr
