"""Without a GPU the kernels run in Triton's interpreter, which must be chosen before Triton is imported."""

import os
from collections.abc import Iterator

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest

from bench.harness import interpreter
from tests.compare import DEVICE


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):  # the keywords also hold the name of the folder tests/gpu
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.fixture
def device() -> torch.device:
    """The device on which kernels run: the GPU if there is one, else the CPU through the interpreter."""
    return DEVICE


@pytest.fixture(autouse=True, scope="session")
def language_patched_once() -> Iterator[None]:
    with interpreter.language_patched_once():
        yield
