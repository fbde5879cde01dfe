"""Turn a file's labels into classes."""

import logging
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("fastflow")

_MAX_LABEL = 2**31 - 1
_MAX_CLASSES = 1 << 16


def class_indices(path: Path, labels: np.ndarray, num: int) -> tuple[Tensor, tuple[str, ...]]:
    """Return the class indices ``[num]`` of integer labels, and the class names: the labels that occur, increasing.

    Raises:
        ValueError: the labels are not ``num`` integers from 0 to 2³¹ − 1; the message names the file.
    """
    if labels.shape != (num,) or labels.dtype.kind not in "ui":
        raise ValueError(f"{path} must hold {num} integers, got {labels.dtype} of shape {labels.shape}")
    values, index = np.unique(labels, return_inverse=True)
    low, high = int(values[0]), int(values[-1])
    if low < 0:
        raise ValueError(f"{path} must hold labels 0, 1, ..., got {low}")
    if high > _MAX_LABEL:
        raise ValueError(f"{path} must hold labels up to {_MAX_LABEL}, got {high}")
    if len(values) > _MAX_CLASSES:
        raise ValueError(f"{path} must hold at most {_MAX_CLASSES} different labels, got {len(values)}")
    missing = high - low + 1 - len(values)
    if missing:
        logger.warning(
            "%s: %d labels between %d and %d do not occur; the classes are the %d labels that do",
            *(path, missing, low, high, len(values)),
        )
    return torch.from_numpy(index.reshape(num).astype(np.int64)), tuple(str(value) for value in values)
