"""Settings and findings of checks, for the tuner and ``tests/gpu``, and worker processes for cases that compile."""

import contextlib
import math
import multiprocessing
import multiprocessing.pool
import os
import signal
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench.harness.interpreter import language_patched_once

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which the importers of this do next

Workers = multiprocessing.pool.Pool


class Finding(NamedTuple):
    """The result of one check. share: the used share of what is allowed, a fault if above 1 or NaN; None if skipped."""

    name: str
    share: float | None
    remark: str = ""

    @property
    def is_fault(self) -> bool:
        return self.share is not None and not self.share <= 1


@dataclass(frozen=True)
class Setting:
    """Settings of a check run.

    dry: tiny inputs, to see that the checks themselves run. deadline: of ``time.monotonic``.
    workers: processes for cases that compile kernels.
    """

    device: torch.device
    dry: bool
    deadline: float = math.inf
    workers: int = 1

    @property
    def time_left(self) -> float:
        return self.deadline - time.monotonic()


def workers(setting: Setting) -> AbstractContextManager[Workers | None]:
    """Start worker processes, which end with the context; None if the setting asks for one worker."""
    if setting.workers <= 1:
        return contextlib.nullcontext()
    return multiprocessing.get_context("spawn").Pool(setting.workers, _initialise_worker)


def _initialise_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles it and ends its workers
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.set_num_threads(1)
    language_patched_once().__enter__()  # until the worker ends
