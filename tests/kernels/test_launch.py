"""Every kernel is launched on the device of its tensors, not on the current one: fake kernels look where they run."""

import contextlib
import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

pytest.importorskip("triton")

from bench.harness.checks import Setting
from bench.harness.subjects import every_launcher
from fastflow.kernels._common import launch

KERNELS = Path(__file__).parents[2] / "kernels"


def modules() -> list[ModuleType]:
    """All modules of kernels that hold Triton code."""
    files = [path for path in sorted(KERNELS.rglob("*.py")) if "triton" in path.read_text()]
    names = (path.relative_to(KERNELS).with_suffix("").parts for path in files)
    return [importlib.import_module(".".join(("fastflow.kernels", *name))) for name in names if name[0] != "_common"]


class FakeKernel:
    """Launches nothing; notes whether it would run on the device of each tensor that it is given."""

    def __init__(self, name: str, guards: list[torch.device], launched: dict[str, bool]) -> None:
        self.name, self.guards, self.launched = name, guards, launched

    def __getitem__(self, grid: tuple[int, ...]) -> "FakeKernel":
        return self

    def __call__(self, *args: object, **options: object) -> None:
        devices = {x.device for x in args if isinstance(x, torch.Tensor)}
        right = bool(self.guards) and devices <= {self.guards[-1]}
        self.launched[self.name] = right and self.launched.get(self.name, True)


def test_every_kernel_is_launched_on_the_device_of_its_tensors(monkeypatch):
    guards: list[torch.device] = []
    launched: dict[str, bool] = {}

    @contextlib.contextmanager
    def on_device(x: torch.Tensor):
        guards.append(x.device)
        yield
        guards.pop()

    kernels = {}
    for module in modules():
        monkeypatch.setattr(module, "on_device", on_device, raising=False)
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            kernels.setdefault(name, FakeKernel(name, guards, launched))
            monkeypatch.setattr(module, name, kernels[name])
    for subject in every_launcher(Setting(torch.device("cpu"), dry=True), torch.float32, width=16):
        subject.kernels()
    assert launched == dict.fromkeys(kernels, True)


def test_the_guard_makes_the_tensors_device_current(monkeypatch):
    entered = []
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext(entered.append(device)))
    second = torch.device("cuda", 1)
    with launch.on_device(SimpleNamespace(is_cuda=True, device=second)):
        assert entered == [second]
    with launch.on_device(torch.zeros(1)):
        assert entered == [second]
