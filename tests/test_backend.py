"""The choice of an implementation, and the message to the user."""

import logging

import pytest
import torch

import fastflow as ff
from fastflow import _backend, _checks

X = torch.zeros(2, 3)
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


def test_reference_is_always_served():
    assert _backend.resolve("reference", "test", X.double()) == "reference"


@CPU_ONLY
def test_auto_takes_the_reference_on_a_cpu_and_says_why_once(caplog):
    _backend._log_once.cache_clear()
    with caplog.at_level(logging.INFO, logger="fastflow"):
        for _ in range(3):
            assert _backend.resolve("auto", "test", X) == "reference"
    assert len(caplog.records) == 1
    assert "test: PyTorch reference, because the tensors are on the CPU" in caplog.text


def test_the_environment_decides_for_auto_only(monkeypatch):
    monkeypatch.setenv("FASTFLOW_BACKEND", "reference")
    assert _backend.explain("auto", X) == ("reference", "FASTFLOW_BACKEND=reference")
    monkeypatch.setenv("FASTFLOW_BACKEND", "triton")
    with pytest.raises(ValueError, match="backend='triton' cannot serve test: the kernels take float16"):
        _backend.resolve("auto", "test", X.double())
    assert _backend.resolve("reference", "test", X) == "reference"
    monkeypatch.setenv("FASTFLOW_BACKEND", "fast")
    with pytest.raises(ValueError, match="FASTFLOW_BACKEND must be one of 'auto', 'triton', 'reference', got 'fast'"):
        _backend.resolve("auto", "test", X)


@pytest.mark.parametrize(
    ("module", "length", "is_causal"),
    [("aten", 17, False), ("aten", 16, True), ("short", 16, False)],
)
def test_plain_attention_has_ways_of_its_own_unless_the_process_says_otherwise(monkeypatch, module, length, is_causal):
    calls = []
    monkeypatch.setattr(f"fastflow.kernels.attention.{module}.supports", lambda *_: bool(calls.append(1)))
    q = torch.randn(1, 1, length, 8)
    ff.attention(q, q, q, is_causal=is_causal)
    assert calls
    calls.clear()
    monkeypatch.setenv("FASTFLOW_BACKEND", "reference")
    ff.attention(q, q, q, is_causal=is_causal)
    assert not calls


@CPU_ONLY
def test_triton_that_cannot_serve_says_why(monkeypatch):
    monkeypatch.setattr(_backend, "interpreted", lambda: False)
    with pytest.raises(ValueError, match="the tensors are on the CPU"):
        _backend.resolve("triton", "test", X)
    monkeypatch.setattr(_backend, "interpreted", lambda: True)
    with pytest.raises(ValueError, match="computes bfloat16 wrongly"):
        _backend.resolve("triton", "test", X.bfloat16())
    with pytest.raises(ValueError, match="run on CUDA devices, not 'meta'"):
        _backend.resolve("triton", "test", X.to("meta"))
    monkeypatch.setattr(_backend, "triton_installed", lambda: False)
    with pytest.raises(ValueError, match="triton is not installed"):
        _backend.resolve("triton", "test", X)


def test_values_on_a_gpu_are_read_only_on_request(monkeypatch):
    from fastflow._checks import readable

    assert readable(X)
    assert not readable(X.to("meta"))
    assert not readable(X[:0])
    monkeypatch.setenv("FASTFLOW_DEBUG", "1")
    assert _checks.debug_checks()


def test_everything_works_without_triton(tmp_path):
    """A machine where Triton cannot be imported still imports fastflow and runs every op."""
    import subprocess
    import sys

    (tmp_path / "triton.py").write_text("raise ImportError('no triton here')\n")
    program = """
import importlib.util, sys, torch
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name.split('.')[0] == 'triton' else find(name, *a)
import fastflow as ff
x = torch.randn(2, 3, requires_grad=True)
ff.flow_matching_loss(x, ff.GaussianNoise(0), torch.randn(2, 3), 0.5, path=ff.paths.CondOT()).backward()
q = torch.randn(1, 2, 5, 8, requires_grad=True)
ff.attention(q, q, q).sum().backward()
try:
    ff.interpolate(x, x, 0.5, path=ff.paths.CondOT(), backend='triton')
except ValueError as error:
    assert 'triton is not installed' in str(error)
else:
    raise SystemExit('no error')
"""
    import os

    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_doctor_reports_and_finds_a_wrong_op(capsys, monkeypatch):
    from fastflow.cli import doctor

    assert doctor.main() == 0
    report = capsys.readouterr().out
    for word in ("torch", "triton", "flow_step", "attention", "divergence", "auto", "every check passed"):
        assert word in report
    monkeypatch.setattr(doctor, "interpolate", lambda *a, **k: 1.001 * a[1])
    assert doctor.main() == 1
    assert "WRONG" in capsys.readouterr().out
