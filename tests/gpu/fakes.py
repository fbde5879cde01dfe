"""Parts that do nothing, for the tests of the check itself; worker processes can import them."""

import os

import torch

from bench.harness.checks import Finding, Setting
from tests.gpu.parts import Case


def good(setting: Setting) -> list[Case]:
    return [Case("one", lambda: [Finding("one", 0.25)]), Case("two", lambda: [Finding("two", None, "not here")])]


def bad(setting: Setting) -> list[Case]:
    return [Case("raises", _raise), Case("fine", lambda: [Finding("fine", 0.5)])]


def cut(setting: Setting) -> list[Case]:
    return [Case("first", lambda: [Finding("first", 0.5)]), Case("second", _interrupt)]


def workers(setting: Setting) -> list[Case]:
    """Cases that tell the process they ran in, and fault if it is not set up for kernels."""
    return [Case(f"case {n}", _look_around) for n in range(6)]


def _look_around() -> list[Finding]:
    ready = torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    return [Finding("kernels can run", 0.0 if ready else torch.inf), Finding("process", None, f"process {os.getpid()}")]


def _interrupt() -> list[Finding]:
    raise KeyboardInterrupt


def _raise() -> list[Finding]:
    raise ValueError("no such thing")
