"""Parts of the GPU check that run pytest: tests of ops and kernels on the real kernels, and the benchmarks."""

import contextlib
import io
import math

import pytest

from bench.harness.checks import Finding, Setting
from bench.harness.rows import ROOT
from tests.gpu.parts import OUT_OF_TIME, Case

_SHARDS_A_WORKER = 3  # for balance


class Shard:
    """A pytest plugin that runs the index-th of count slices of the collected tests while there is time."""

    def __init__(self, setting: Setting, index: int = 0, count: int = 1) -> None:
        self.setting, self.index, self.count = setting, index, count
        self.findings: list[Finding] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        size = len(items)
        items[:] = items[size * self.index // self.count : size * (self.index + 1) // self.count]

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if self.setting.time_left <= 0:
            item.session.shouldstop = OUT_OF_TIME
            pytest.skip(OUT_OF_TIME)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.findings.append(Finding(report.nodeid, math.inf, _last_line(report.longreprtext)))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped:
            self.findings.append(Finding(report.nodeid, None, report.longrepr[2].removeprefix("Skipped: ")))
        elif report.failed:
            self.findings.append(Finding(report.nodeid, math.inf, _last_line(report.longreprtext)))
        elif report.when == "call":
            self.findings.append(Finding(report.nodeid, 0.0))

    def run(self, *arguments: str, quiet: bool = True) -> list[Finding]:
        options = ["-q", "--continue-on-collection-errors", "--rootdir", str(ROOT)]
        with contextlib.redirect_stdout(io.StringIO()) if quiet else contextlib.nullcontext():
            status = pytest.main([*options, *arguments], plugins=[self])
        if status == pytest.ExitCode.NO_TESTS_COLLECTED or self.findings:
            return self.findings
        return [Finding(" ".join(arguments), 0.0 if status == pytest.ExitCode.OK else math.inf, str(status))]


def op_tests(setting: Setting) -> list[Case]:
    """Run ``tests/ops`` and ``tests/kernels`` without the tests marked slow."""
    options = ("-m", "not slow")
    if setting.dry:
        options += ("-k", "a_gpu_draws or known_answers")
        return _shards(setting, 1, "ops/test_random.py", "kernels/noise", options=options)
    return _shards(setting, setting.workers * _SHARDS_A_WORKER, "ops", "kernels", options=options)


def compiled_tests(setting: Setting) -> list[Case]:
    """Run the tests of ``tests/ops`` marked slow, mostly Inductor around the kernels with the backward."""
    options = ("-m", "slow")
    if setting.dry:
        return _shards(setting, 1, "ops/attention", options=(*options, "-k", "forward_over_attention_jvp"))
    return _shards(setting, 2 * setting.workers, "ops", options=options)


def _shards(setting: Setting, count: int, *folders: str, options: tuple[str, ...]) -> list[Case]:
    arguments = (*(str(ROOT / "tests" / name) for name in folders), *options)
    return [Case(f"shard {n}", lambda n=n: Shard(setting, n, count).run(*arguments)) for n in range(count)]


def benches(setting: Setting) -> list[Case]:
    """Run and record every suite of ``bench/``."""
    arguments = [str(ROOT / "bench"), "--collect-only" if setting.dry else "--record"]
    return [Case("benches", lambda: Shard(setting).run(*arguments, quiet=setting.dry))]


def _last_line(text: str) -> str:
    lines = [line for line in text.strip().splitlines() if line.startswith("E ")] or text.strip().splitlines()[-1:]
    return lines[0].removeprefix("E").strip()[:200] if lines else ""
