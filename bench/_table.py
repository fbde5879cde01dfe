"""Rows of one device as they are looked up and printed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from bench._lines import Line
from bench._rows import Row
from bench._slope import slope

SUITES = {  # the operation, in the order of a page, and what measures it
    "flow step": "pytest bench/test_flow_step.py",
    "training step": "pytest bench -k training_step",
    "largest batch": "pytest bench -k largest_batch",
    "attention": "pytest bench/test_attention.py",
    "divergence": "pytest bench -k divergence",
    "guidance": "pytest bench -k guidance",
    "scaling attention": "pytest bench -k scaling",
}
YARDSTICKS = {  # what flash attention does without tangents
    "forward + jvp + joint backward": "forward + backward",
    "forward + jvp + plain backward": "forward + backward",
    "forward + jvp": "forward",
}


def is_gpu(device: str) -> bool:
    return not device.endswith(" threads")


def devices(rows: Iterable[Row]) -> list[str]:
    """GPUs first, of each kind the one measured last first."""
    dates: dict[str, str] = {}
    for row in rows:
        dates[row["device"]] = max(row["date"], dates.get(row["device"], ""))
    return sorted(sorted(dates, key=dates.__getitem__, reverse=True), key=is_gpu, reverse=True)


def measured_on(rows: Sequence[Row]) -> str:
    """The software, the commits and the days of these rows."""
    found = {name: sorted({row[name] for row in rows} - {"none"}) for name in (*_SOFTWARE, "commit", "date")}
    software = [f"{title} {', '.join(found[name])}" for name, title in _SOFTWARE.items() if found[name]]
    days = sorted({found["date"][0], found["date"][-1]})
    return f"{', '.join(software)}; {' to '.join(days)}, commit {', '.join(found['commit'])}"


_SOFTWARE = {"torch": "PyTorch", "triton": "Triton", "python": "Python", "driver": "driver"}


@dataclass(frozen=True)
class Curve:
    """One mode and one implementation of attention at several lengths N."""

    mode: str
    implementation: str
    rows: Sequence[Row]

    @property
    def lengths(self) -> list[int]:
        return [row["shape"][2] for row in self.rows]

    def values(self, field: str) -> list[float]:
        return [row[field] for row in self.rows]

    def slope(self, field: str) -> float:
        return slope(self.lengths, self.values(field))


class Table:
    """The rows of one device."""

    def __init__(self, rows: Iterable[Row], device: str) -> None:
        self.device = device
        self.rows = [row for row in rows if row["device"] == device]

    def ways(self, case: Line | Row, launch: str = "eager", mode: str = "") -> list[Row]:
        """Those of a case, launched alike; mode: another one at the same shape."""
        fields = case if isinstance(case, Mapping) else vars(case)
        wanted = {"op": fields["op"], "mode": mode or fields["mode"], "dtype": fields["dtype"]}
        wanted |= {"launch": launch, "shape": list(fields["shape"])}
        return [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]

    def row(self, case: Line | Row, implementation: str, launch: str = "eager", mode: str = "") -> Row | None:
        return next((row for row in self.ways(case, launch, mode) if row["implementation"] == implementation), None)

    def own(self, line: Line) -> Row:
        return self.row(line, line.implementation)

    def fastest(self, line: Line) -> Row:
        """What the device takes: as a CUDA graph, where there is one, else launched by Python."""
        return self.row(line, line.implementation, "graph") or self.own(line)

    def times_as_fast(self, line: Line, launch: str = "eager") -> float | None:
        """The median ratio over the rounds where the baseline is the row's own, else the ratio of medians."""
        own, other = (self.row(line, name, launch) for name in (line.implementation, line.baseline))
        if own is None or other is None:
            return None
        return own["times_as_fast"] if own["baseline"] == line.baseline else other["ms"] / own["ms"]

    def times_flash(self, row: Row) -> float | None:
        """The time over that of flash attention's plain passes on the same shape, launched alike."""
        mode = YARDSTICKS.get(row["mode"])
        flash = mode and self.row(row, "flash", row["launch"], mode)
        return row["ms"] / flash["ms"] if flash else None

    def curves(self) -> list[Curve]:
        """How time and memory of attention grow with its length."""
        groups: dict[tuple[str, str], list[Row]] = {}
        scaled = [row for row in self.rows if row["op"] == "scaling attention" and row["launch"] == "eager"]
        for row in sorted(scaled, key=lambda row: row["shape"][2]):
            groups.setdefault((row["mode"], row["implementation"]), []).append(row)
        return [Curve(*name, rows) for name, rows in groups.items() if len(rows) > 1]


def markdown(head: Sequence[str], body: Iterable[Sequence[str]], numbers: slice) -> list[str]:
    """The lines of a table; numbers: the columns that are aligned to the right."""
    rules = ["---"] * len(head)
    rules[numbers] = ["--:"] * len(rules[numbers])
    return [f"| {' | '.join(head)} |", f"|{'|'.join(rules)}|", *(f"| {' | '.join(cells)} |" for cells in body)]


def decimals(value: float | None) -> str:
    """A ratio, or a dash."""
    return "–" if value is None else f"{value:.2f}"


def number(value: float | None) -> str:
    """Three significant digits, or a dash."""
    if value is None:
        return "–"
    return f"{value:.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
