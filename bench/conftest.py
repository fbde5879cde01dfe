"""The fixture ``record``: measure a case, print its rows, and keep them with --record."""

import pytest
import torch

from bench.harness.case import is_own
from bench.harness.measure import measure
from bench.harness.rows import append
from bench.harness.timing import synchronize


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="append rows to bench/results/<device>.jsonl")
    parser.addoption("--full", action="store_true", help="whole grids, which take longer than eight minutes on a GPU")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--full"):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("full")])
        items[:] = [item for item in items if not item.get_closest_marker("full")]


@pytest.fixture
def record(benchmark, request):
    """Time every way of a case against its baseline.

    fastflow's way also goes into pytest-benchmark's table, so that ``--benchmark-compare`` can compare commits.
    """

    def run(case):
        torch.compiler.reset()  # Dynamo gives up on a function after eight shapes
        rows = measure(case)
        if request.config.getoption("--record"):
            append(rows)
        benchmark.extra_info["rows"] = rows
        own = next(name for name in reversed(case.ways) if is_own(name))
        benchmark.pedantic(finished, args=(case.ways[own].call,), rounds=3)
        with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
            print("\n" + shown(case.entry.title, rows))

    return run


def finished(call):
    call()
    synchronize()


def shown(title, rows):
    """Return a table as text: time, speed over the baseline, share of the roof, peak memory and error."""
    lines = [
        f"  {r['implementation']:<22} {r['launch']:<6} {r['ms']:10.3f} ms {r['times_as_fast']:6.2f} x"
        f" {r['roof_share']:6.1%} of {r['bound']:<5} {r['peak_mb']:9.1f} MiB  error {r['error']:.0e}"
        for r in rows
    ]
    notes = [f"  {note}" for note in {r["note"]: None for r in rows} if note]
    return "\n".join([title, *lines, *notes])
