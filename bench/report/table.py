"""The rows of one device, and how they are looked up."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bench.harness.rows import Row
from bench.harness.slope import slope

SUITES = {  # the operations in the order of a page, and the command that measures each
    "attention": "pytest bench/suites/test_attention.py",
    "scaling attention": "pytest bench -k scaling",
    "block op": "pytest bench -k block_ops",
    "divergence": "pytest bench -k divergence",
    "guidance": "pytest bench -k guidance",
    "training step": "pytest bench -k training_step",
    "largest batch": "pytest bench -k largest_batch",
    "flow step": "pytest bench/suites/test_flow_step.py",
}
_OWN = "fastflow"
_SOFTWARE = {"torch": "PyTorch", "triton": "Triton", "python": "Python", "driver": "driver"}


def is_gpu(device: str) -> bool:
    return not device.endswith(" threads")


def devices(rows: Iterable[Row]) -> list[str]:
    """Return the devices, GPUs first, and the one that was measured last first of each kind."""
    dates: dict[str, str] = {}
    for row in rows:
        dates[row["device"]] = max(row["date"], dates.get(row["device"], ""))
    return sorted(sorted(dates, key=dates.__getitem__, reverse=True), key=is_gpu, reverse=True)


def measured_on(rows: Sequence[Row]) -> str:
    """Return the software, the dates and the commits of these rows as text."""
    found = {name: sorted({row[name] for row in rows} - {"none"}) for name in (*_SOFTWARE, "commit", "date")}
    software = [f"{title} {', '.join(found[name])}" for name, title in _SOFTWARE.items() if found[name]]
    days = sorted({found["date"][0], found["date"][-1]})
    return f"{', '.join(software)}; {' to '.join(days)}, commit {', '.join(found['commit'])}"


class Line(NamedTuple):
    """fastflow's row of a labelled case, and one of the baselines that the case is compared with."""

    own: Row
    baseline: str

    @property
    def label(self) -> str:
        return self.own["label"]

    @property
    def in_readme(self) -> bool:
        return self.baseline in self.own["readme"]


@dataclass(frozen=True)
class Curve:
    """Rows of one mode and one implementation of attention, in order of the length N."""

    mode: str
    implementation: str
    rows: Sequence[Row]

    @property
    def label(self) -> str:
        return self.rows[0].get("label", "")

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

    def lines(self) -> list[Line]:
        """Return the labelled cases with each of their measured baselines, in the order of ``SUITES``."""
        own = [
            row for row in self.rows if row.get("label") and (row["implementation"], row["launch"]) == (_OWN, "eager")
        ]
        own.sort(key=lambda row: list(SUITES).index(row["op"]))
        lines = [Line(row, baseline) for row in own for baseline in row["baselines"]]
        return [line for line in lines if self.times_as_fast(line) is not None]

    def ways(self, case: Row, launch: str = "eager", mode: str = "") -> list[Row]:
        """Return the rows of a row's case with one kind of launch. mode: of another case at the same shape."""
        wanted = {name: case[name] for name in ("op", "mode", "shape", "dtype")} | {"launch": launch}
        wanted |= {"mode": mode} if mode else {}
        return [row for row in self.rows if all(row[name] == value for name, value in wanted.items())]

    def row(self, case: Row, implementation: str, launch: str = "eager", mode: str = "") -> Row | None:
        return next((row for row in self.ways(case, launch, mode) if row["implementation"] == implementation), None)

    def fastest(self, line: Line) -> Row:
        """Return fastflow's row as a CUDA graph, or launched by Python if there is no graph."""
        return self.row(line.own, _OWN, "graph") or line.own

    def times_as_fast(self, line: Line, launch: str = "eager") -> float | None:
        """Return the median ratio over the rounds if the rows have this baseline, else the ratio of the medians."""
        own, other = (self.row(line.own, name, launch) for name in (_OWN, line.baseline))
        if own is None or other is None:
            return None
        return own["times_as_fast"] if own["baseline"] == line.baseline else other["ms"] / own["ms"]

    def times_flash(self, row: Row) -> float | None:
        """Return the time over that of flash attention without tangents, at the same shape and with the same launch."""
        mode = row.get("yardstick")
        flash = mode and self.row(row, "flash", row["launch"], mode)
        return row["ms"] / flash["ms"] if flash else None

    def curves(self) -> list[Curve]:
        """Return time and memory of attention against its length."""
        groups: dict[tuple[str, str], list[Row]] = {}
        scaled = [row for row in self.rows if row["op"] == "scaling attention" and row["launch"] == "eager"]
        for row in sorted(scaled, key=lambda row: row["shape"][2]):
            groups.setdefault((row["mode"], row["implementation"]), []).append(row)
        return [Curve(*name, rows) for name, rows in groups.items() if len(rows) > 1]
