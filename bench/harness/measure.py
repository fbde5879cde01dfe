"""Measure a case: verify it, time its ways in interleaved rounds, count their memory, compare them with the roofs."""

from collections.abc import Callable, Mapping

import torch

from bench.harness.case import Case, Verdict, verify
from bench.harness.memory import peak_bytes
from bench.harness.roofline import roof
from bench.harness.rows import Row, machine, rounded
from bench.harness.timing import captured, interleaved, percentiles, ratio, rounds_for

CUDA = torch.cuda.is_available()
SECONDS = 0.2 if CUDA else 1.5  # of timing for each way, about
MOST_ROUNDS = 30 if CUDA else 100


def measure(case: Case) -> list[Row]:
    """Return a row for each way, on a GPU a second one for its CUDA graph; a wrong result raises and is not timed."""
    verdict = verify(case)
    calls = {name: case.ways[name].call for name in verdict.errors}
    memory = {name: peak_bytes(call) for name, call in calls.items()}
    rows = _timed(case, "eager", calls, verdict, memory)
    if CUDA and case.graph:
        graphs = {name: graph for name, call in calls.items() if (graph := _graph(call))}
        rows += _timed(case, "graph", graphs, verdict, memory)
    return rows


def _timed(
    case: Case,
    launch: str,
    calls: Mapping[str, Callable[[], object]],
    verdict: Verdict,
    memory: Mapping[str, int],
) -> list[Row]:
    if not calls:
        return []
    rounds = min(rounds_for(call, SECONDS, case.least_rounds, MOST_ROUNDS) for call in calls.values())
    seconds = interleaved(calls, rounds, warmup=1)
    limit, baseline = roof(case.entry.dtype), case.baseline if case.baseline in calls else next(iter(calls))
    left_out = [f"{name}: {reason}" for name, reason in verdict.left_out.items()]
    rows = []
    for name in calls:
        times = percentiles(seconds[name])
        rows.append(
            {
                **case.entry.key,
                "implementation": name,
                "launch": launch,
                "ms": rounded(times.p50),
                "ms_p20": rounded(times.p20),
                "ms_p80": rounded(times.p80),
                "rounds": rounds,
                "baseline": baseline,
                "times_as_fast": rounded(1 / ratio(seconds, name, baseline)),
                "tflops": rounded(case.floor.flops / times.p50 / 1e9),
                "gbps": rounded(case.floor.bytes / times.p50 / 1e6),
                "roof_share": rounded(1e3 * limit.seconds(case.floor) / times.p50),
                "bound": limit.binds(case.floor),
                "roof_tflops": rounded(limit.flops_per_second / 1e12),
                "roof_gbps": rounded(limit.bytes_per_second / 1e9),
                "peak_mb": rounded(memory[name] / 2**20),
                "error": float(f"{verdict.errors[name]:.1e}"),
                "note": "; ".join(filter(None, [case.note, *left_out])),
                **case.entry.listing,
                **machine(),
            }
        )
    return rows


def _graph(call: Callable[[], object]) -> Callable[[], object] | None:
    """Capture a CUDA graph; None if it does not fit beside the other graphs, or if the call waits for the CPU."""
    try:
        return captured(call)
    except RuntimeError:
        # A failed capture may leave its stream current and the generator waiting for the end of the capture.
        torch.cuda.set_stream(torch.cuda.default_stream())
        torch.cuda.synchronize()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        return None
