"""Give recorded rows the listing fields (label, baselines, reason ...) that their suites now declare."""

import json
from collections.abc import Iterable

from bench.harness import rows
from bench.harness.case import Entry
from bench.report.table import devices, is_gpu
from bench.suites.entries import entries


def relabel() -> None:
    """Rewrite ``bench/results/<device>.jsonl``; measurements stay as they are."""
    for device in devices(rows.read()):
        path = rows.path_of(device)
        found = {json.dumps(entry.key): entry for entry in entries(is_gpu(device))}
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        path.write_text("".join(json.dumps(_relabelled(row, found)) + "\n" for row in lines))


def _relabelled(row: rows.Row, found: dict[str, Entry]) -> rows.Row:
    entry = found.get(json.dumps(key_of(row)))
    return row if entry is None else row | entry.listing


def key_of(row: rows.Row) -> rows.Row:
    """Return the part of a row's key that an entry has."""
    return {name: row.get(name) for name in ("op", "mode", "shape", "dtype")}


def missing(device_rows: Iterable[rows.Row], cuda: bool) -> list[str]:
    """Return what the labelled rows and the labelled entries of the suites do not share, as text."""
    recorded = {json.dumps([key_of(row), _listing(row)]) for row in device_rows if row.get("label")}
    declared = {json.dumps([entry.key, entry.listing]) for entry in entries(cuda) if entry.label}
    return [
        *(f"recorded, but no suite declares it: {x}" for x in sorted(recorded - declared)),
        *(f"declared by a suite, but not recorded: {x}" for x in sorted(declared - recorded)),
    ]


def _listing(row: rows.Row) -> rows.Row:
    return {name: row[name] for name in Entry("", "", (), None).listing}
