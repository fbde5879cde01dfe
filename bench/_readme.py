"""The README's section on what was measured, from the rows alone."""

from collections.abc import Callable, Sequence

from bench._lines import LINES, Line
from bench._rows import Row, path_of
from bench._table import SUITES, Table, decimals, devices, is_gpu, markdown, measured_on, number

BEGIN, END = "<!-- measured: begin, made by python -m bench.report -->", "<!-- measured: end -->"
NO_GPU = "No GPU has been measured yet; `make bench-gpu` measures one."
NOTHING = "Not measured yet: `make bench` measures this machine, `make bench-gpu` one with a GPU."
EXPLAINED = 0.95  # a ratio below it gets its reason
Cell = Callable[[Table, Line], str]


def replaced(readme: str, section: str) -> str:
    """The README with what stands between the marks replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md must hold the marks {BEGIN!r} and {END!r}, in this order")
    return f"{before}{BEGIN}\n{section}{END}{after}"


def section(rows: Sequence[Row], pictures: Callable[[str], Sequence[str]]) -> str:
    """Markdown: a table for the GPU and one for the CPU that were measured last.

    pictures: of a device, paths from the README.
    """
    found = devices(rows)
    gpus, cpus = ([device for device in found if is_gpu(device) == kind] for kind in (True, False))
    shown = gpus[:1] + cpus[:1]
    if not shown:
        return NOTHING + "\n"
    links = ", ".join(f"[{device}](bench/results/{path_of(device).stem}.md)" for device in found)
    paragraphs = [
        *([] if gpus else [NO_GPU]),
        *(paragraph for device in shown for paragraph in _device(Table(rows, device))),
        *(f"![Time and memory on {shown[0]}]({picture})" for picture in pictures(shown[0])),
        f"Every row, with its error, its roof and further baselines: {links}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _device(table: Table) -> list[str]:
    lines = [line for line in LINES if table.times_as_fast(line) is not None]
    if not lines:
        return []
    columns = GPU_COLUMNS if is_gpu(table.device) else COLUMNS
    shown = [table.own(line) for line in lines]
    rounds = [row["rounds"] for row in shown]
    caption = (
        f"**{table.device}**; {measured_on(shown)}. Medians of {min(rounds)} rounds or more that interleave fastflow "
        "and the baseline: above 1 fastflow is faster, peak memory below 1 is less."
    )
    body = [[cell(table, line) for cell in columns.values()] for line in lines]
    for above, cells in zip(lines, body[1:]):
        cells[0] = "" if cells[0] == above.label else cells[0]
    return [
        caption,
        "\n".join(markdown(tuple(columns), body, slice(2, -1))),
        *_reasons(table, lines),
        *_growth(table),
        *_largest(table),
    ]


def unexplained(table: Table) -> list[Line]:
    """What is slower than its baseline without a reason given."""
    lines = (line for line in LINES if not line.reason)
    return [line for line in lines if (table.times_as_fast(line) or 1.0) < EXPLAINED]


def _reasons(table: Table, lines: Sequence[Line]) -> list[str]:
    slower: dict[str, dict[str, None]] = {}
    for line in lines:
        if line.reason and table.times_as_fast(line) < EXPLAINED:
            slower.setdefault(line.reason, {})[line.label] = None
    return [f"Below 1 ({'; '.join(labels)}): {reason}." for reason, labels in slower.items()]


def _growth(table: Table) -> list[str]:
    curves = [curve for curve in table.curves() if "joint" in curve.mode]
    if not curves:
        return []
    least, *_, most = max((curve.lengths for curve in curves), key=len)
    powers = ", ".join(f"N^{curve.slope('peak_mb'):.2f} in {curve.implementation}" for curve in curves)
    return [f"From N {least} to {most} the peak memory of attention's joint backward grows as {powers}."]


def _largest(table: Table) -> list[str]:
    steps: dict[str, list[str]] = {}
    for row in table.rows:
        if row["op"] == "largest batch":
            steps.setdefault(row["mode"], []).append(f"{row['batch']} in {row['implementation']}")
    return [f"The largest batch that fits, {step}: {', '.join(batches)}." for step, batches in steps.items()]


def _ratio(launch: str) -> Cell:
    return lambda table, line: decimals(table.times_as_fast(line, launch))


def _peak(table: Table, line: Line) -> str:
    own, other = table.own(line)["peak_mb"], table.row(line, line.baseline)["peak_mb"]
    return f"{decimals(own / other)} ({number(own)} / {number(other)} MiB)"


def _flash(table: Table, line: Line) -> str:
    return decimals(table.times_flash(table.fastest(line)))


def _roof(table: Table, line: Line) -> str:
    return f"{table.fastest(line)['roof_share']:.0%}"


_FIRST: dict[str, Cell] = {
    "what": lambda table, line: line.label,
    "baseline": lambda table, line: line.baseline,
    "times as fast": _ratio("eager"),
}
_LAST: dict[str, Cell] = {
    "peak memory": _peak,
    "command": lambda table, line: f"`{SUITES[line.op]}`",
}
COLUMNS = {**_FIRST, **_LAST}
GPU_COLUMNS = {**_FIRST, "as CUDA graphs": _ratio("graph"), "time / flash's": _flash, "share of roof": _roof, **_LAST}
