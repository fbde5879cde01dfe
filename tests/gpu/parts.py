"""The parts of the GPU check: each lists cases, runs them here or in worker processes, and makes one row.

A worker finds a case by the part's name and the case's number, so cases may be closures.
"""

import importlib
import math
import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.harness import rows
from bench.harness.checks import Finding, Setting, Workers

PASS, FAIL, SKIP, STOPPED = "pass", "FAIL", "skipped", "stopped"
OUT_OF_TIME = "out of time"
_MOST_FAULTS = 20  # named in a row


class Case(NamedTuple):
    name: str
    run: Callable[[], list[Finding]]


@dataclass(frozen=True)
class Part:
    """name: of the part, and with underscores of the function in ``module`` that lists its cases.

    parallel: True if the cases compile kernels, which takes a core each, and may share the GPU.
    """

    name: str
    module: str
    parallel: bool = False

    def cases(self, setting: Setting) -> Sequence[Case]:
        return getattr(importlib.import_module(self.module), self.name.replace(" ", "_"))(setting)


def run(part: Part, setting: Setting, pool: Workers | None = None) -> rows.Row:
    """Run the part and return its row, also if a case raises, time runs out or the user interrupts."""
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


def _run_nth(work: tuple[Part, Setting, int]) -> list[Finding]:
    part, setting, n = work
    return _attempt(part.cases(setting)[n])


def _attempt(case: Case) -> list[Finding]:
    try:
        return case.run()
    except Exception as error:
        return [Finding(case.name, math.inf, _short(error))]


def _row(name: str, findings: Sequence[Finding], stopped: str, seconds: float) -> rows.Row:
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
        **rows.machine(),
    }


def _short(error: Exception) -> str:
    text = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {text[0][:200]}"
