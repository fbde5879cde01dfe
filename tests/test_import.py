"""Importing the package: fast, without Dynamo, and under another name from any path."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light():
    """Neither torch._dynamo nor Triton nor anything of the trainer or the command line is imported."""
    names = run("import sys, fastflow; print(*sys.modules)").split()
    assert "fastflow.ops.attention" in names
    for heavy in ("torch._dynamo", "triton", "fastflow.train", "fastflow.cli", "tyro", "matplotlib"):
        assert heavy not in names, heavy


def test_two_copies_live_beside_each_other(tmp_path):
    """Loaded under another name, the package registers ops of its own and computes the same."""
    program = f"""
import importlib.util, sys, torch, types
import fastflow
sys.modules["other"] = types.ModuleType("other")
spec = importlib.util.spec_from_file_location("other.copy", "{ROOT}/fastflow/__init__.py",
                                              submodule_search_locations=["{ROOT}/fastflow"])
copy = sys.modules["other.copy"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(copy)
torch.manual_seed(0)
x, t = (tuple(torch.randn(1, 2, 9, 8) for _ in range(3)) for _ in range(2))
for a, b in zip(torch.func.jvp(fastflow.attention, x, t), torch.func.jvp(copy.attention, x, t)):
    assert torch.equal(a, b)
assert torch.equal(fastflow.GaussianNoise(1).materialize((5,)), copy.GaussianNoise(1).materialize((5,)))
assert torch.ops.other_copy.attention is not torch.ops.fastflow.attention
assert not {{m for m in vars(copy.ops.attention.api).values() if getattr(m, "__module__", "").startswith("fastflow")}}
print(copy.attention.__module__)
"""
    assert run(program).strip() == "other.copy.ops.attention.api"
