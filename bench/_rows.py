"""Rows: what was measured, appended to ``bench/results/<device>.jsonl``, one JSON object a line."""

import datetime
import functools
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
KEY = ("device", "op", "mode", "shape", "dtype", "implementation", "launch", "config")
Row = dict[str, Any]


@functools.cache
def machine() -> Mapping[str, str]:
    """What a row says of the machine and the software."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = "none"
    return {
        "device": device_name(),
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": triton_version,
        "commit": _output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=10"),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def device_name() -> str:
    """The GPU's name, or the CPU's with its number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return f"{found[1].strip() if found else platform.machine()} CPU, {torch.get_num_threads()} threads"


def path_of(device: str) -> Path:
    return RESULTS / f"{re.sub(r'[^a-z0-9]+', '-', device.lower()).strip('-')}.jsonl"


def append(rows: Iterable[Row]) -> None:
    for row in rows:
        with path_of(row["device"]).open("a") as file:
            file.write(json.dumps(row) + "\n")


def read(device: str | None = None) -> list[Row]:
    """The newest row of every key, of one device or of all: a later measurement replaces an earlier one."""
    paths = sorted(RESULTS.glob("*.jsonl")) if device is None else [path_of(device)]
    lines = [line for path in paths if path.exists() for line in path.read_text().splitlines()]
    rows = [row for row in map(json.loads, lines) if "implementation" in row]
    return list({key(row): row for row in rows}.values())


def key(row: Row) -> tuple[str, ...]:
    """What makes two rows measurements of the same thing; only a kernel's row has a ``config``."""
    return tuple(json.dumps(row.get(name), sort_keys=True) for name in KEY)


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
