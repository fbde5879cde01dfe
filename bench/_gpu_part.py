"""A part of the GPU check: cases that find out something, run one by one or in processes of their own, and its row.

Cases find themselves again in another process by the part's name and their number, so they may be closures.
"""

import contextlib
import importlib
import math
import multiprocessing
import multiprocessing.pool
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bench import _rows

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when Triton is imported, which our importers do next

PASS, FAIL, SKIP, STOPPED = "pass", "FAIL", "skipped", "stopped"
OUT_OF_TIME = "out of time"
_MOST_FAULTS = 20  # that a row tells of
Workers = multiprocessing.pool.Pool


class Finding(NamedTuple):
    """What was looked at, and how much of what is allowed it took: above 1, or NaN, is a fault, None was not tried."""

    name: str
    share: float | None
    remark: str = ""

    @property
    def is_fault(self) -> bool:
        return self.share is not None and not self.share <= 1


class Case(NamedTuple):
    name: str
    run: Callable[[], list[Finding]]


@dataclass(frozen=True)
class Setting:
    """device: where the kernels run. dry: tiny, to see that the check itself runs. deadline: of ``time.monotonic``.
    workers: processes for parts whose cases each compile kernels."""

    device: torch.device
    dry: bool
    deadline: float = math.inf
    workers: int = 1

    @property
    def time_left(self) -> float:
        return self.deadline - time.monotonic()


@dataclass(frozen=True)
class Part:
    """name: also the function's, in ``module``, that lists the cases. parallel: whether they compile kernels, which
    takes a core each, and may share the GPU."""

    name: str
    module: str
    parallel: bool = False

    def cases(self, setting: Setting) -> Sequence[Case]:
        return getattr(importlib.import_module(self.module), self.name.replace(" ", "_"))(setting)


def workers(setting: Setting) -> AbstractContextManager[Workers | None]:
    """Processes for parallel parts, ended when the context is; None where the setting wants none."""
    if setting.workers <= 1:
        return contextlib.nullcontext()
    return multiprocessing.get_context("spawn").Pool(setting.workers, _initialise_worker)


def run(part: Part, setting: Setting, pool: Workers | None = None) -> _rows.Row:
    """The part's row; whatever happens inside, and also if it is interrupted or runs out of time."""
    start, findings, stopped = time.monotonic(), [], ""
    try:
        for found in _findings(part, setting, pool):
            findings += found
    except TimeoutError:
        stopped = OUT_OF_TIME
    except KeyboardInterrupt:
        stopped = "interrupted"
    except Exception as error:
        findings.append(Finding(part.name, math.inf, _short(error)))
    return _row(part.name, findings, stopped, time.monotonic() - start)


def _findings(part: Part, setting: Setting, pool: Workers | None) -> Iterator[list[Finding]]:
    cases = part.cases(setting)
    if pool is None or not part.parallel:
        for case in cases:
            if setting.time_left <= 0:
                raise TimeoutError
            yield _attempt(case)
        return
    found = pool.imap_unordered(_run_nth, [(part, setting, n) for n in range(len(cases))])
    for _ in cases:
        try:
            yield found.next(None if setting.deadline == math.inf else max(0.0, setting.time_left))
        except multiprocessing.TimeoutError:
            raise TimeoutError from None


def _initialise_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the parent, which ends its workers
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.set_num_threads(1)


def _run_nth(work: tuple[Part, Setting, int]) -> list[Finding]:
    part, setting, n = work
    return _attempt(part.cases(setting)[n])


def _attempt(case: Case) -> list[Finding]:
    try:
        return case.run()
    except Exception as error:
        return [Finding(case.name, math.inf, _short(error))]


def _row(name: str, findings: Sequence[Finding], stopped: str, seconds: float) -> _rows.Row:
    tried = [x for x in findings if x.share is not None]
    faults = [x for x in findings if x.is_fault]
    sentences = (f"{x.name}: {x.remark or f'{x.share:.2f} of what is allowed'}" for x in faults)
    told = [*dict.fromkeys(sentences)][:_MOST_FAULTS]
    skipped = {x.remark: None for x in findings if x.share is None} | ({stopped: None} if stopped else {})
    worst = max(tried, key=lambda x: math.inf if math.isnan(x.share) else x.share, default=None)
    unfinished = stopped or OUT_OF_TIME in skipped
    verdict = FAIL if faults else STOPPED if unfinished else PASS if tried else SKIP
    return {
        "check": name,
        "verdict": verdict,
        "tried": len(tried),
        "faults": len(faults),
        "worst": f"{worst.share:.2f} {worst.name}" if worst and worst.share else "",
        "remarks": [*told, *skipped],
        "seconds": round(seconds, 1),
        **_rows.machine(),
    }


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:200]}"
