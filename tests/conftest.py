"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is imported."""

import importlib.util
import os
from collections.abc import Iterator

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from tests.compare import DEVICE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def device() -> torch.device:
    """Where kernels run: the GPU if there is one, else the CPU through the interpreter."""
    return DEVICE


@pytest.fixture(autouse=True, scope="session")
def language_patched_once() -> Iterator[None]:
    """Interpreted kernels at three times the speed: Triton patches triton.language anew at every call of a helper.

    The launch has done that for helpers of ours, and once is enough for those of Triton's own standard library.
    """
    if os.environ.get("TRITON_INTERPRET") != "1" or importlib.util.find_spec("triton") is None:
        yield
        return
    from triton.runtime import interpreter

    patched = set()

    def call(self, *args, **kwargs):
        module = self.fn.__module__
        if module.startswith("triton.") and module not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(module)
        return self.rewrite()(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield
