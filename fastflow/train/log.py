"""The log of a training run."""

import json
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoint import newest_valid
from .errors import NonFiniteError
from .extras import extra
from .files import naming, replace_text

_COLUMNS = ("loss", "grad_norm", "learning_rate")


class RunLog:
    """Writes a row for every step to ``metrics.jsonl`` and, on request, to TensorBoard.

    Losses stay on the device until :meth:`flush`, so that the training loop rarely waits for the GPU.

    Args:
        folder: folder of the run.
        step: number of completed steps when a run is resumed; later rows are dropped.
        tensorboard: write TensorBoard events as well.
    """

    def __init__(self, folder: Path, step: int, tensorboard: bool) -> None:
        self.file = folder / "metrics.jsonl"
        self._checkpoints = folder / "checkpoints"
        self.rows: list[dict[str, Any]] = [row for row in read_rows(self.file) if row["step"] <= step]
        replace_text(self.file, "".join(map(_line, self.rows)))
        self._pending: list[tuple[int, float, Tensor, Tensor]] = []
        self._writer = None
        if tensorboard:
            self._writer = extra("torch.utils.tensorboard").SummaryWriter(folder / "tensorboard", purge_step=step + 1)

    def add(self, step: int, learning_rate: float, loss: Tensor, grad_norm: Tensor) -> None:
        """Record a step; the tensors are scalars on any device."""
        self._pending.append((step, learning_rate, loss.detach(), grad_norm.detach()))

    def flush(self) -> float:
        """Write the rows recorded since the last call; return the latest loss.

        Raises:
            NonFiniteError: a loss or gradient is not finite; the message names the first such step.
        """
        if not self._pending:
            return self.rows[-1]["loss"] if self.rows else math.nan
        values = torch.stack([torch.stack((loss.float(), norm.float())) for *_, loss, norm in self._pending]).tolist()
        fresh = []
        for (step, learning_rate, *_), (loss, grad_norm) in zip(self._pending, values):
            for name, value in (("loss", loss), ("gradient's norm", grad_norm)):
                if not math.isfinite(value):
                    good = newest_valid(self._checkpoints) or "none"
                    raise NonFiniteError(f"the {name} is {value} at step {step}; last good checkpoint: {good}")
            fresh.append({"step": step, "loss": loss, "grad_norm": grad_norm, "learning_rate": learning_rate})
        self._pending.clear()
        self._append(fresh)
        return fresh[-1]["loss"]

    def write_scalars(self, group: str, values: dict[str, float], step: int) -> None:
        """Write scalars ``group/name`` to TensorBoard, if it is on."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        """Close the TensorBoard writer."""
        if self._writer is not None:
            self._writer.close()

    def curve(self) -> tuple[Sequence[int], Sequence[float]]:
        """Return the steps and losses so far."""
        return [row["step"] for row in self.rows], [row["loss"] for row in self.rows]

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with naming(self.file), self.file.open("a") as stream:
            stream.writelines(map(_line, rows))
        self.rows += rows
        for row in rows:
            self.write_scalars("train", {k: v for k, v in row.items() if k != "step"}, row["step"])


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Read a metrics file: one row for each step, in order, the last one where a step occurs twice.

    A last line that a crash cut short is left out. Other damaged lines are left out with a warning.
    """
    if not file.exists():
        return []
    *lines, last = file.read_bytes().split(b"\n")
    parsed = [_parse_row(line) for line in lines]
    if damaged := parsed.count(None):
        warnings.warn(f"dropped {damaged} damaged line(s) of {file}", RuntimeWarning, stacklevel=2)
    rows = {row["step"]: row for row in (*parsed, _parse_row(last)) if row is not None}
    return [rows[step] for step in sorted(rows)]


def _parse_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    valid = isinstance(row, dict) and type(row.get("step")) is int and row["step"] > 0
    return row if valid and all(_is_finite(row.get(k)) for k in _COLUMNS) else None


def _is_finite(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
