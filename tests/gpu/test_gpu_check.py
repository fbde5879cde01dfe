"""The GPU check runs without one, finds what is broken, and keeps what it had found when it is stopped."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from bench.harness import rows as results
from bench.harness.checks import Finding, Setting, workers
from bench.harness.subjects import every_launcher, flow_step
from bench.report.correctness import check_lines
from fastflow.kernels.attention import forward
from fastflow.kernels.divergence import reduce
from fastflow.kernels.flow_step import interpolate
from tests.compare import DEVICE, share_of_budget
from tests.gpu import __main__ as gpu_check
from tests.gpu import fakes as fake_parts
from tests.gpu import memory, numbers, parts, suites
from tests.gpu.parts import Case, Part

DRY = Setting(DEVICE, dry=True)
QUICK = ("-p", "no:unraisableexception", "-p", "no:threadexception")  # which collect garbage for half a second


def found(cases: list[Case], prefix: str) -> list[Finding]:
    """The findings of the cases whose name begins so, of which there must be some."""
    findings = [x for case in cases if case.name.startswith(prefix) for x in case.run()]
    assert findings
    return findings


def faults(cases: list[Case], prefix: str) -> list[str]:
    return [x.name for x in found(cases, prefix) if x.is_fault]


def break_forward(monkeypatch, wrong: Callable[..., bool]) -> None:
    """One per cent too much where wrong says so of the arguments."""
    original = forward.dual_forward

    def broken(*tensors, **options):
        out, *rest = original(*tensors, **options)
        return 1.01 * out if wrong(*tensors) else out, *rest

    monkeypatch.setattr(forward, "dual_forward", broken)


@pytest.fixture
def foreign(tmp_path):
    """An environment with another package named ``tests`` on the path, as the wheel of flow_matching installs one."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "__init__.py").write_text("raise ImportError('not the tests of fastflow')\n")
    return os.environ | {"PYTHONPATH": str(tmp_path)}


@pytest.mark.release
def test_every_part_runs_dry_beside_another_package_named_tests(foreign):
    done = subprocess.run(
        [sys.executable, "-m", "tests.gpu", "--dry-run"],
        cwd=results.ROOT,
        env=foreign,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = {part.name: [x for x in done.stdout.splitlines() if x.startswith(part.name)] for part in gpu_check.PARTS}
    for name, lines in verdicts.items():
        assert len(lines) == 1, (name, done.stdout)
        assert lines[0].split()[len(name.split())] in ("pass", "skipped")


@pytest.mark.slow
def test_pytest_starts_beside_another_package_named_tests(foreign, tmp_path):
    """By a script, as the command ``pytest`` is one: the current folder is not on the path."""
    script = tmp_path / "run.py"
    script.write_text("import sys, pytest\nsys.exit(pytest.main())\n")
    done = subprocess.run(
        [sys.executable, script, "tests/bench/test_live_compilation.py", "bench", "--collect-only", "-q"],
        cwd=results.ROOT,
        env=foreign,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_live_loops" in done.stdout
    assert "bench/suites/test_attention.py" in done.stdout


def test_a_wrong_factor_exceeds_its_budget(monkeypatch):
    prefix = "attention forward float32 width=16 is_causal"
    assert not faults(numbers.dtype_budgets(DRY), prefix)
    break_forward(monkeypatch, lambda *_: True)
    assert faults(numbers.dtype_budgets(DRY), prefix) == [f"{prefix}=True out"]


def test_a_budget_is_scale_free_and_nan_is_a_fault():
    truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
    rounded = truth.float() * (1 + 1e-3)
    for scale in (1e-2, 1.0, 1e6):
        share = share_of_budget(scale * rounded, scale * truth, scale * rounded, 2)
        assert share == pytest.approx(0.5, rel=1e-2)
    assert Finding("", share_of_budget(torch.tensor([1.0, torch.nan]), truth, rounded, 2)).is_fault
    assert Finding("", share_of_budget(rounded[:1], truth, rounded, 2)).is_fault
    assert [Finding("", share).is_fault for share in (0.0, 1.0, 1.01, None)] == [False, False, True, False]


def test_a_configuration_that_is_wrong_is_the_only_fault(monkeypatch):
    """The check launches what it says it does."""
    shipped = [case.name for case in numbers.configurations(DRY) if case.name.startswith("forward Config")]
    assert len(shipped) == 2
    break_forward(monkeypatch, lambda q, *_: forward.config_for(q, 64, "forward").block_m == 32)
    cases = numbers.configurations(DRY)
    assert [faults(cases, name) != [] for name in shipped] == ["block_m=32" in name for name in shipped]


def test_each_run_must_give_the_same_bits(monkeypatch):
    original, calls = reduce.dots, []

    def drifting(*args):
        calls.append(args)
        return original(*args) * (1 + 1e-6 * len(calls))

    assert not faults(numbers.same_bits(DRY), "divergence gaussian")
    monkeypatch.setattr(reduce, "dots", drifting)
    assert faults(numbers.same_bits(DRY), "divergence gaussian") == ["divergence gaussian float16 dots"]


@pytest.mark.parametrize("beyond", [0, 1])
def test_what_is_not_written_or_written_outside_is_seen(monkeypatch, beyond):
    def careless(terms, dtype):
        out = torch.empty(terms.x1.shape, dtype=dtype, device=terms.x1.device)
        out.as_strided((out.numel() - 1 + 2 * beyond,), (1,)).zero_()
        return out

    assert not faults(memory.guard_zones(DRY), "flow step float16 drawn=False")
    monkeypatch.setattr(interpolate, "interpolate", careless)
    monkeypatch.setattr(
        memory, "every_launcher", lambda setting, dtype, width: [flow_step(setting, dtype, drawn=False)]
    )
    part = Part("guard zones", "tests.gpu.memory")
    row = parts.run(part, DRY)
    assert row["verdict"] == parts.FAIL
    assert any("written past the end" in x for x in row["remarks"]) == bool(beyond)
    assert any("xt" in x for x in row["remarks"]) != bool(beyond)


@pytest.mark.slow
def test_offsets_that_wrap_are_seen(monkeypatch):
    assert not faults(memory.far_views(DRY), "attention rows")
    break_forward(monkeypatch, lambda q, k, *_: 33 * k.stride(2) > 1 << 31)
    assert "attention rows, result 0" in faults(memory.far_views(DRY), "attention rows")
    assert not faults(memory.far_views(DRY), "attention heads")


@pytest.mark.slow
def test_tests_become_findings(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\ndef test_c(): pytest.skip('no reason')\n"
    )
    (tmp_path / "test_broken.py").write_text("import nothing_of_that_name\n")
    findings = suites.Shard(DRY).run(str(tmp_path), *QUICK)
    by_name = {x.name.rpartition("::")[2]: x for x in findings}
    assert by_name["test_a"] == (by_name["test_a"].name, 0.0, "")
    assert by_name["test_b"].is_fault
    assert "1 == 2" in by_name["test_b"].remark
    assert by_name["test_c"][1:] == (None, "no reason")
    assert sum(x.is_fault for x in findings) == 2


def test_shards_are_the_whole(tmp_path):
    (tmp_path / "test_many.py").write_text(
        "import pytest\n@pytest.mark.parametrize('i', range(7))\ndef test_it(i): pass\n"
    )
    names = [x.name for n in range(3) for x in suites.Shard(DRY, n, 3).run(str(tmp_path), *QUICK)]
    assert len(names) == len(set(names)) == 7


def test_tests_stop_when_there_is_no_time(tmp_path):
    (tmp_path / "test_late.py").write_text("def test_a(): pass\ndef test_b(): pass\n")
    late = Setting(DEVICE, dry=True, deadline=time.monotonic() - 1)
    assert [x[1:] for x in suites.Shard(late).run(str(tmp_path), *QUICK)] == [(None, "out of time")]


@pytest.fixture
def fakes(monkeypatch, tmp_path):
    """Known parts, and an empty folder of results."""
    monkeypatch.setattr(results, "RESULTS", tmp_path)
    return tuple(Part(name, "tests.gpu.fakes") for name in ("good", "bad", "cut"))


def test_rows_are_kept_as_they_come(fakes, monkeypatch):
    good, bad, cut = fakes
    assert not gpu_check.check([good, bad, cut, good], DRY, record=True)
    device = results.device_name()
    rows = [json.loads(line) for line in results.path_of(device).read_text().splitlines()]
    assert [(r["check"], r["verdict"], r["tried"]) for r in rows] == [
        ("good", "pass", 1),
        ("bad", "FAIL", 2),
        ("cut", "stopped", 1),
    ]
    assert rows[0]["worst"] == "0.25 one"
    assert rows[0]["remarks"] == ["not here"]
    assert rows[1]["remarks"] == ["raises: ValueError: no such thing"]
    assert results.read(device) == []
    page = results.path_of(device).with_suffix(".md").read_text()
    for row in rows:
        assert f"| {row['check']} | {row['verdict']} |" in page
    monkeypatch.setattr(fake_parts, "bad", fake_parts.good)
    assert gpu_check.check([bad], DRY, record=True)
    assert "| bad | pass |" in "\n".join(check_lines(results.read_checks(device)))


def test_a_part_stops_when_there_is_no_time(fakes):
    """And what it had found before stands."""
    late = Setting(DEVICE, dry=True, deadline=time.monotonic() - 1)
    row = parts.run(fakes[0], late)
    assert (row["verdict"], row["tried"], row["remarks"]) == ("stopped", 0, ["out of time"])
    gpu_check.check(fakes[:1], DRY, record=True)
    gpu_check.check(fakes[:1], late, record=True)
    assert "| good | pass |" in "\n".join(check_lines(results.read_checks(results.device_name())))


@pytest.mark.slow
def test_processes_of_their_own_find_the_same():
    setting = Setting(DEVICE, dry=True, workers=2)
    good, bad, told = (Part(name, "tests.gpu.fakes", parallel=True) for name in ("good", "bad", "workers"))
    with workers(setting) as pool:
        rows = [parts.run(part, setting, pool) for part in (good, bad, told)]
        late = parts.run(told, Setting(DEVICE, dry=True, deadline=time.monotonic() - 1, workers=2), pool)
    for row, part in zip(rows, (good, bad)):
        alone = parts.run(part, DRY)
        assert all(row[name] == alone[name] for name in ("check", "verdict", "tried", "faults", "worst"))
        assert sorted(row["remarks"]) == sorted(alone["remarks"])
    assert (rows[2]["verdict"], rows[2]["tried"]) == ("pass", 6)
    assert f"process {os.getpid()}" not in rows[2]["remarks"]
    assert late["verdict"] == "stopped"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lines", "status", "verdict"),
    [
        (["========= ERROR SUMMARY: 0 errors"], 0, "pass"),
        (["========= ERROR SUMMARY: 3 errors"], 0, "FAIL"),
        (["========= RACECHECK SUMMARY: 2 hazards displayed (0 errors, 2 warnings)"], 0, "pass"),
        (["========= RACECHECK SUMMARY: 3 hazards displayed (1 errors, 2 warnings)"], 0, "FAIL"),
        (["========= ERROR SUMMARY: 0 errors"], 1, "FAIL"),
        (["no summary"], 0, "FAIL"),
        (["sleeps"], "$(sleep 30)", "skipped"),
        (None, 0, "skipped"),
    ],
)
def test_sanitizer(lines, status, verdict, tmp_path, monkeypatch):
    if lines is not None:
        program = tmp_path / "compute-sanitizer"
        program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines) + f"exit {status}\n")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(memory, "_SANITIZER_SECONDS", 1)
    row = parts.run(Part("sanitizer", "tests.gpu.memory"), Setting(DEVICE, dry=False))
    assert row["verdict"] == verdict


@pytest.mark.slow
def test_every_kernel_is_launched(monkeypatch):
    """A new kernel must join the check."""
    from triton.runtime.interpreter import GridExecutor

    launched, launch = set(), GridExecutor.__call__

    def seen(self, *args, **options):
        launched.add((Path(self.fn.__code__.co_filename).resolve(), self.fn.__name__))
        return launch(self, *args, **options)

    monkeypatch.setattr(GridExecutor, "__call__", seen)
    for subject in every_launcher(DRY, torch.float32, 16):
        subject.kernels()
    files = [path.resolve() for path in (results.ROOT / "kernels").glob("*/*.py")]
    kernels = {(path, name) for path in files for name in re.findall(r"^def (_\w+_kernel)\(", path.read_text(), re.M)}
    assert len(kernels) > 10
    assert kernels - launched == set()
