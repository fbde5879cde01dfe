"""``record``: measures a case, shows its ratios, and with --record keeps the rows. pytest-benchmark keeps the rest."""

import pytest

from bench import _rows
from bench._measure import measure


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="append rows to bench/results/<device>.jsonl")


@pytest.fixture
def record(benchmark, request):
    """Times every way of a case against its baseline; fastflow's own goes into pytest-benchmark's table too, so that
    ``--benchmark-compare`` tells one commit from another."""

    def run(case):
        rows = measure(case)
        if request.config.getoption("--record"):
            _rows.append(rows)
        benchmark.group = case.title
        benchmark.extra_info["rows"] = rows
        own = next(name for name in reversed(case.ways) if name.startswith("fastflow"))
        benchmark.pedantic(case.ways[own].call, rounds=3, warmup_rounds=1)
        with request.config.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
            print(f"\n{case.title}")
            for r in rows:
                print(f"  {r['implementation']:<28} {r['launch']:<6} {r['ms']:9.3f} ms {r['times_as_fast']:6.2f} x")
            for name, reason in case.skipped.items():
                print(f"  {name:<28} left out: {reason}")

    return run
