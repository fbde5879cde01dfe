"""A file's classes are the labels that occur."""

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from fastflow.train.data import DataSpec, load_data
from fastflow.train.data.labels import class_indices

FILE = Path("y.npy")


@pytest.mark.parametrize("dtype", ["u1", "i1", "<i2", ">i4", "<i8", "u8"])
@pytest.mark.parametrize(
    "labels",
    [[0, 1, 2, 1], [1, 2, 3, 3], [7, 7, 7, 7], [5, 6, 5, 6]],
    ids=["from zero", "from one", "one class", "from five"],
)
def test_classes_are_the_labels_that_occur(labels: list[int], dtype: str, caplog: pytest.LogCaptureFixture) -> None:
    y, names = class_indices(FILE, np.array(labels, dtype=dtype), 4)
    assert names == tuple(str(label) for label in sorted(set(labels)))
    assert [int(names[k]) for k in y] == labels
    assert y.dtype == torch.int64
    assert not caplog.records


def test_holes_are_no_classes_and_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "fastflow"):
        y, names = class_indices(FILE, np.array([0, 9, 4, 9]), 4)
    assert names == ("0", "4", "9")
    assert y.tolist() == [0, 2, 1, 2]
    assert "y.npy: 7 labels between 0 and 9 do not occur; the classes are the 3 labels that do" in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([0, 1, -1, 0]), "must hold labels 0, 1, ..., got -1"),
        (np.array([0, 1, 10**12, 0]), "must hold labels up to 2147483647, got 1000000000000"),
        (np.array([0, 1, 2**64 - 1, 0], dtype=np.uint64), "must hold labels up to"),
        (np.array([0, 1, -(2**63), 0]), "must hold labels 0, 1, ..."),
        (np.array([0.0, 1.0, 2.0, 0.0]), r"must hold 4 integers, got float64 of shape \(4,\)"),
        (np.array([0.0, np.nan, 2.0, 0.0]), "must hold 4 integers, got float64"),
        (np.array([True, False, True, False]), "must hold 4 integers, got bool"),
        (np.eye(4, dtype=int), r"must hold 4 integers, got int64 of shape \(4, 4\)"),
        (np.zeros((4, 1), dtype=int), r"must hold 4 integers, got int64 of shape \(4, 1\)"),
        (np.zeros(5, dtype=int), "must hold 4 integers"),
        (np.zeros(0, dtype=int), "must hold 4 integers"),
        (np.array(3), "must hold 4 integers"),
        (np.array(["a", "b", "c", "d"]), "cannot read the array"),
        (np.zeros(4, dtype=complex), "cannot read the array"),
    ],
    ids=str,
)
def test_bad_labels_are_named_in_one_line(labels: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(4, 1, 2, 2)))
    np.save(tmp_path / "bad.npy", labels)
    with pytest.raises(ValueError, match=rf"bad\.npy.*{message}|{message}.*bad\.npy") as caught:
        load_data(str(tmp_path / "x.npy"), tmp_path / "bad.npy")
    assert "\n" not in str(caught.value)


def test_too_many_classes() -> None:
    with pytest.raises(ValueError, match="at most 65536 different labels, got 70000"):
        class_indices(FILE, np.arange(70_000), 70_000)


def test_labels_of_other_data_are_refused(tmp_path: Path) -> None:
    for data in ("digits", "moons", str(tmp_path)):
        with pytest.raises(ValueError, match=r"labels belong to data in an \.npy array"):
            load_data(data, tmp_path / "y.npy")


def test_spec_has_the_labels_of_the_file() -> None:
    spec = DataSpec("images", (1, 2, 2), ("1", "7", "10"), 0.5, 0.5)
    assert spec.class_index("10") == 2
    assert spec.labels(torch.tensor([2, 0, 1])).tolist() == [10, 1, 7]
    with pytest.raises(ValueError, match="label must be one of the 3 classes 1, 7, 10, got '2'"):
        spec.class_index("2")
    folders = DataSpec("images", (1, 2, 2), ("01", "1"), 0.5, 0.5)
    assert folders.labels(torch.tensor([0, 1])).tolist() == ["01", "1"]
    with pytest.raises(ValueError, match="label must be left out: the data has no classes, got '1'"):
        DataSpec("points", (2,), (), 0.0, 1.0).class_index("1")
