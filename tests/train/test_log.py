"""Damaged metrics cost the damaged rows and no others."""

import json
from pathlib import Path

import pytest
import torch

from fastflow.train.log import RunLog, read_rows


def row(step: int, loss: float = 1.0) -> bytes:
    return json.dumps({"step": step, "loss": loss, "grad_norm": 1.0, "learning_rate": 0.1}).encode()


BAD = {
    "rubbish": b"rubbish",
    "cut short": row(3)[:20],
    "empty": b"",
    "not UTF-8": b"\xff\xfe\x00",
    "null": b"null",
    "a list": b"[3]",
    "step 0": row(0),
    "a negative step": row(-5),
    "no step": b'{"loss": 1.0}',
    "no loss": b'{"step": 3}',
    "step in quotes": row(3).replace(b": 3", b': "3"'),
    "a true step": row(3).replace(b": 3", b": true"),
    "not a number": row(3, float("nan")),
    "infinite": row(3, float("inf")),
    "a huge integer": row(3).replace(b"1.0", b"1" + b"0" * 400, 1),
    "deeply nested": b"[" * 100_000,
}


@pytest.mark.parametrize("line", BAD.values(), ids=BAD)
def test_a_bad_line_costs_that_line_only(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([row(1), row(2), line, row(4), row(5), b""]))
    with pytest.warns(RuntimeWarning, match=r"dropped 1 damaged line\(s\) of .*metrics\.jsonl"):
        log = RunLog(tmp_path, 4, tensorboard=False)
    assert [r["step"] for r in log.rows] == [1, 2, 4]
    assert [r["step"] for r in read_rows(file)] == [1, 2, 4]  # now without a warning


def test_rows_are_sorted_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(b"\n".join([row(2), row(1), row(2, 7.0), row(3)]))  # complete, though it lacks the line feed
    assert [(r["step"], r["loss"]) for r in read_rows(file)] == [(1, 1.0), (2, 7.0), (3, 1.0)]


def test_a_link_to_metrics_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "m.jsonl"
    target.write_bytes(row(1) + b"\n" + row(2) + b"\n")
    (tmp_path / "metrics.jsonl").symlink_to(target)
    log = RunLog(tmp_path, 1, tensorboard=False)
    log.add(2, 0.1, torch.tensor(3.0), torch.tensor(1.0))
    log.flush()
    assert (tmp_path / "metrics.jsonl").is_symlink()
    assert [r["loss"] for r in read_rows(target)] == [1.0, 3.0]
