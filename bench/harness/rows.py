"""Rows of measurements in ``bench/results/<device>.jsonl``, one JSON object a line; new ones are appended."""

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

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
KEY = ("device", "op", "mode", "shape", "dtype", "implementation", "launch", "config")
Row = dict[str, Any]


@functools.cache
def machine() -> Mapping[str, str]:
    """Return the fields of a row that describe the machine and the software."""
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
    """Return the GPU's name, or the CPU's with its number of threads."""
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
    """Return the newest measurement of every key, of one device or of all."""
    return list({key(row): row for row in _recorded(device) if "implementation" in row}.values())


def read_checks(device: str) -> list[Row]:
    """Return the newest row of every correctness check of ``tests/gpu`` on a device."""
    return list({row["check"]: row for row in _recorded(device) if "check" in row}.values())


def key(row: Row) -> tuple[str, ...]:
    """Return the fields that identify what a row measured; only rows of the tuner have a ``config``."""
    return tuple(json.dumps(row.get(name), sort_keys=True) for name in KEY)


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def rounded(value: float) -> float:
    """Round to four significant digits; the rest is noise."""
    return float(f"{value:.4g}")


def _recorded(device: str | None) -> list[Row]:
    paths = sorted(RESULTS.glob("*.jsonl")) if device is None else [path_of(device)]
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]


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
