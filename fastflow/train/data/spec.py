"""The description of a data set, which every checkpoint holds."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..settings import FINITE, POSITIVE, check_settings

Kind = Literal["images", "latents", "points"]

# fp32 keeps data to a millionth of its std while the mean is at most this many stds away from zero
_FLOAT32_OFFSET = 16.0
_FLOAT32_STDS = (2.0**-60, 2.0**60)


@dataclass(frozen=True)
class DataSpec:
    """Description of the data, enough to draw and show samples of a trained model without the data itself.

    The network sees :meth:`standardise` of the data. Everything outside the training step is in the data's own units,
    and classes are indices into ``class_names``.

    Args:
        kind: images lie in [0, 1]; latents and points have units of their own.
        shape: shape of one sample.
        class_names: the labels of a file, in increasing order, or the names of the class folders.
        mean, std: of all values; 0.5 for images.
        fingerprint: hash of the content, empty for data that is drawn afresh.
    """

    kind: Kind
    shape: tuple[int, ...]
    class_names: tuple[str, ...]
    mean: float
    std: float
    fingerprint: str = ""

    @property
    def num_classes(self) -> int:
        """Number of classes, 0 for data without labels."""
        return len(self.class_names)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of values in the data's own units: fp32, or float64 where fp32 is too coarse for this mean and std."""
        low, high = _FLOAT32_STDS
        enough = abs(self.mean) <= _FLOAT32_OFFSET * self.std and low < self.std < high
        return torch.float32 if enough else torch.float64

    def standardise(self, x: Tensor) -> Tensor:
        """Return ``(x - mean) / std`` in fp32, computed in the dtype of x."""
        return ((x - self.mean) / self.std).float()

    def to_data_units(self, x: Tensor) -> Tensor:
        """Invert :meth:`standardise`, in ``dtype``; clamp images to [0, 1]."""
        x = x.to(self.dtype) * self.std + self.mean
        return x.clamp(0.0, 1.0) if self.kind == "images" else x

    def class_index(self, name: str) -> int:
        """Return the index of a class.

        Raises:
            ValueError: there is no class of this name.
        """
        if not self.num_classes:
            raise ValueError(f"label must be left out: the data has no classes, got {name!r}")
        if name not in self.class_names:
            known = ", ".join(self.class_names[:10]) + (", ..." if self.num_classes > 10 else "")
            raise ValueError(f"label must be one of the {self.num_classes} classes {known}, got {name!r}")
        return self.class_names.index(name)

    def labels(self, y: Tensor) -> np.ndarray:
        """Return the labels of class indices ``[N]``: int64 if every label is an integer, else strings."""
        integers = all(name.isascii() and name.isdigit() and name == str(int(name)) for name in self.class_names)
        labels = np.array([int(name) for name in self.class_names] if integers else self.class_names)
        return labels[y.numpy()]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataSpec":
        """Build a spec from the JSON form of ``dataclasses.asdict``.

        Raises:
            TypeError: a value has the wrong type.
            ValueError: a size, the mean or the standard deviation is impossible.
        """
        tuples = {name: tuple(values[name]) for name in ("shape", "class_names") if isinstance(values[name], list)}
        spec = cls(**{**values, **tuples})
        if min(spec.shape, default=0) < 1 or not (math.isfinite(spec.mean) and 0.0 < spec.std < math.inf):
            raise ValueError(f"no data has shape {spec.shape}, mean {spec.mean} and std {spec.std}")
        check_settings(spec, {"mean": FINITE, "std": POSITIVE})
        return spec
