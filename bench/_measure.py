"""From a case to its rows: verified, timed in interleaved rounds, its memory counted, set against the roofs."""

from collections.abc import Callable, Mapping

import torch

from bench._case import Case, Verdict, verify
from bench._memory import peak_bytes
from bench._rows import Row, machine
from bench._timing import captured, interleaved, percentiles, ratio, rounds_for
from bench.roofline import roof

CUDA = torch.cuda.is_available()
SECONDS = 0.2 if CUDA else 1.5  # timed for each way, about
MOST_ROUNDS = 30 if CUDA else 100


def measure(case: Case) -> list[Row]:
    """A row for each way, and on a GPU a second one for its CUDA graph; a wrong result raises and is not timed."""
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
    limit, baseline = roof(case.dtype), case.baseline if case.baseline in calls else next(iter(calls))
    left_out = [f"{name}: {reason}" for name, reason in verdict.left_out.items()]
    rows = []
    for name in calls:
        times = percentiles(seconds[name])
        rows.append(
            {
                "op": case.op,
                "mode": case.mode,
                "shape": list(case.shape),
                "dtype": str(case.dtype).removeprefix("torch."),
                "implementation": name,
                "launch": launch,
                "ms": _short(times.p50),
                "ms_p20": _short(times.p20),
                "ms_p80": _short(times.p80),
                "rounds": rounds,
                "baseline": baseline,
                "times_as_fast": _short(1 / ratio(seconds, name, baseline)),
                "tflops": _short(case.floor.flops / times.p50 / 1e9),
                "gbps": _short(case.floor.bytes / times.p50 / 1e6),
                "roof_share": _short(1e3 * limit.seconds(case.floor) / times.p50),
                "bound": limit.binds(case.floor),
                "roof_tflops": _short(limit.flops_per_second / 1e12),
                "roof_gbps": _short(limit.bytes_per_second / 1e9),
                "peak_mb": _short(memory[name] / 2**20),
                "error": float(f"{verdict.errors[name]:.1e}"),
                "note": "; ".join(filter(None, [case.note, *left_out])),
                **machine(),
            }
        )
    return rows


def _graph(call: Callable[[], object]) -> Callable[[], object] | None:
    """None where a way cannot be captured: it does not fit beside the other graphs, or needs the CPU after all."""
    try:
        return captured(call)
    except RuntimeError:
        # a failed capture may leave its stream current and the generator waiting for the capture's end
        torch.cuda.set_stream(torch.cuda.default_stream())
        torch.cuda.synchronize()
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        generator.graphsafe_set_state(generator.clone_state())
        return None


def _short(value: float) -> float:
    """Four significant digits: more is noise."""
    return float(f"{value:.4g}")
