"""The README's section "Measured", made from the rows alone."""

from collections.abc import Callable, Sequence

from bench.harness.rows import Row, path_of
from bench.report.comparison import comparison
from bench.report.table import Table, devices, is_gpu

BEGIN, END = "<!-- measured: begin, made by python -m bench.report -->", "<!-- measured: end -->"
NO_GPU = "No GPU has been measured yet; `make bench-gpu` measures one."
NOTHING = "Not measured yet: run `make bench` on this machine, or `make bench-gpu` on one with a GPU."


def replaced(readme: str, section: str) -> str:
    """Return the README with the text between the marks replaced."""
    before, _, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise ValueError(f"README.md must hold the marks {BEGIN!r} and {END!r}, in this order")
    return f"{before}{BEGIN}\n{section}{END}{after}"


def section(rows: Sequence[Row], pictures: Callable[[str], Sequence[str]]) -> str:
    """Return Markdown on the GPU and the CPU that were measured last. pictures: device to paths from the README."""
    found = devices(rows)
    gpus, cpus = ([device for device in found if is_gpu(device) == kind] for kind in (True, False))
    shown = gpus[:1] + cpus[:1]
    if not shown:
        return NOTHING + "\n"
    links = ", ".join(f"[{device}](bench/results/{path_of(device).stem}.md)" for device in found)
    paragraphs = [
        *(paragraph for device in shown for paragraph in _device(Table(rows, device))),
        *([] if gpus else [NO_GPU]),
        *(f"![Time and memory on {shown[0]}]({picture})" for picture in pictures(shown[0])),
        f"All cases, with further baselines, errors and roofs: {links}.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def _device(table: Table) -> list[str]:
    lines = [line for line in table.lines() if line.in_readme]
    return [*comparison(table, lines), *_growth(table), *_largest(table)]


def _growth(table: Table) -> list[str]:
    curves = [curve for curve in table.curves() if curve.label]
    if not curves:
        return []
    least, *_, most = max((curve.lengths for curve in curves), key=len)
    powers = " and ".join(f"as N^{curve.slope('peak_mb'):.2f} in {curve.implementation}" for curve in curves)
    return [f"From N = {least} to {most}, the peak memory of {curves[0].label} grows {powers}."]


def _largest(table: Table) -> list[str]:
    steps: dict[str, list[str]] = {}
    for row in table.rows:
        if row["op"] == "largest batch":
            steps.setdefault(row["mode"], []).append(f"{row['batch']} with {row['implementation']}")
    return [f"Largest batch that fits, {step}: {', '.join(batches)}." for step, batches in steps.items()]
