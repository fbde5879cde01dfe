"""Load images, latents and points from .npy files."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..memory import check_memory
from .datasets import ArrayData, Samples
from .fingerprint import Fingerprint
from .labels import class_indices
from .spec import DataSpec, Kind

_CHUNK = 1 << 24  # values that are read at a time
_SMALLEST_SPAN, _LARGEST_SPAN = 1e-100, 1e100  # metrics square distances
_NUMBERS = "buif"  # NumPy's kinds of real numbers: bool, unsigned, signed, floating point
_MAGIC = b"\x93NUMPY"
_OTHER_FORMATS = {b"PK": "an .npz archive", b"\x1f\x8b": "compressed with gzip"}


def load_array(path: Path, labels: Path | None) -> ArrayData:
    """Load an array ``[N, C, H, W]`` of images or latents, or ``[N, D]`` of points.

    Bytes with one or three channels are images. Everything else keeps its own units; its mean and standard deviation
    are computed in float64.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the array or its labels are not what they should be; the message names the file.
    """
    array = open_array(path)
    kind = _kind(path, array)
    if kind == "points" and labels is not None:
        raise ValueError(f"labels need [N, C, H, W] data, but {path} has shape {array.shape}")
    fingerprint = Fingerprint()
    y: Tensor | None = None
    names: tuple[str, ...] = ()
    if labels is not None:
        y, names = class_indices(labels, open_array(labels), len(array))
        fingerprint.array(y.numpy())
    mean, std = (0.5, 0.5) if kind == "images" else _moments(path, array)
    shape = tuple(array.shape[1:])
    dtype = DataSpec(kind, shape, names, mean, std).dtype
    check_memory(array.size * dtype.itemsize, f"{path}, an array of shape {array.shape},")
    x = torch.empty(array.shape, dtype=dtype)
    fingerprint.layout(array)
    start = 0
    for part in _chunks(array):
        fingerprint.values(part)
        values = torch.from_numpy(part.astype(np.float32 if dtype == torch.float32 else np.float64))
        x[start : start + len(part)] = values / 255.0 if kind == "images" else values
        start += len(part)
    return ArrayData(DataSpec(kind, shape, names, mean, std, fingerprint.digest()), Samples(x, y))


def open_array(path: Path) -> np.ndarray:
    """Map an .npy file of real numbers into memory."""
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    with path.open("rb") as stream:
        magic = stream.read(len(_MAGIC))
    if magic != _MAGIC:
        found = next((name for start, name in _OTHER_FORMATS.items() if magic.startswith(start)), "no .npy file")
        raise ValueError(f"cannot read the array {path}: it is {found}, and must be one array saved by numpy.save")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy's parser raise nearly anything
        raise ValueError(f"cannot read the array {path}: {' '.join(str(error).split())}") from error
    if array.dtype.kind not in _NUMBERS:
        raise ValueError(f"cannot read the array {path}: it holds {array.dtype}, not real numbers")
    extra_bytes = path.stat().st_size - array.nbytes - getattr(array, "offset", 0)
    if array.size and extra_bytes > 0:
        raise ValueError(f"cannot read the array {path}: {extra_bytes} more bytes follow the array of {array.shape}")
    return array


def _kind(path: Path, array: np.ndarray) -> Kind:
    shape = array.shape
    if len(shape) not in (2, 4) or 0 in shape:
        hint = "; save x[:, None] if these are grey images" if len(shape) == 3 else ""
        raise ValueError(f"{path} must hold [N, C, H, W] or [N, D], got shape {shape}{hint}")
    if len(shape) == 2:
        return "points"
    bytes_ = array.dtype == np.uint8
    if _has_channels_last(shape, bytes_):
        raise ValueError(
            f"{path} must hold [N, C, H, W], and its shape {shape} looks like [N, H, W, C]: "
            "save x.transpose(0, 3, 1, 2)"
        )
    if bytes_ and shape[1] in (2, 4):
        raise ValueError(
            f"{path} holds bytes with {shape[1]} channels: lay images over a background so that 1 or 3 channels are "
            "left, and save other data as float32"
        )
    return "images" if bytes_ and shape[1] in (1, 3) else "latents"


def _has_channels_last(shape: tuple[int, ...], bytes_: bool) -> bool:
    _, first, second, last = shape
    if bytes_:
        return first not in (1, 3) and last in (1, 2, 3, 4) and first > last
    return last in (1, 3, 4) and first > 4 and (first == second or (last == 3 and second > 4))


def _moments(path: Path, array: np.ndarray) -> tuple[float, float]:
    """Return the mean and standard deviation of all values, from differences to the smallest, in float64."""
    for part in _chunks(array):
        if array.dtype.kind == "f" and not np.isfinite(part).all():
            raise ValueError(f"{path} holds values that are not finite")
    low = min(part.min() for part in _chunks(array))
    high = max(part.max() for part in _chunks(array))
    with np.errstate(over="ignore"):  # to infinity, which is refused below
        span = float(_above(low, high[None])[0])
    if span == 0.0:
        raise ValueError(f"{path} holds one value throughout")
    if not _SMALLEST_SPAN < span < _LARGEST_SPAN:
        raise ValueError(f"{path} holds values from {low} to {high}, whose squares float64 cannot hold: scale them")
    mean = sum(float((_above(low, part) / span).sum()) for part in _chunks(array)) / array.size
    square = sum(float(np.square(_above(low, part) / span - mean).sum()) for part in _chunks(array))
    std = span * math.sqrt(square / array.size)
    if max(abs(float(low)), abs(float(high))) > 2.0**43 * std:  # float64 keeps a thousandth of the std up to here
        raise ValueError(f"{path} holds values near {low} that differ too little for float64: subtract {low} and save")
    # machines sum in different orders: keep digits that do not depend on it
    digit = 2.0 ** (math.frexp(std)[1] - 24)
    return round((float(low) + mean * span) / digit) * digit, round(std / digit) * digit


def _above(low: np.number, part: np.ndarray) -> np.ndarray:
    """Return ``part - low`` in float64, exact for integers of 64 bits."""
    if part.dtype.kind in "bui":
        return (part.astype(np.uint64) - np.uint64(int(low) % 2**64)).astype(np.float64)
    if part.dtype.itemsize <= 8:
        return part.astype(np.float64) - np.float64(low)
    return (part - low).astype(np.float64)


def _chunks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield a large array in parts along its first axis, in native byte order."""
    rows = max(1, _CHUNK * len(array) // array.size)
    for start in range(0, len(array), rows):
        yield np.ascontiguousarray(array[start : start + rows], dtype=array.dtype.newbyteorder("="))
