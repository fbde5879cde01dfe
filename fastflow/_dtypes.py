"""The dtype of intermediate results, at least float32, and of arguments under autocast."""

import torch
from torch import Tensor


def at_least_float32(*xs: Tensor | torch.dtype) -> torch.dtype:
    """Return float64 if any of xs is float64, else float32."""
    wide = any((x.dtype if isinstance(x, Tensor) else x) == torch.float64 for x in xs)
    return torch.float64 if wide else torch.float32


def autocast_dtype(device: str) -> torch.dtype | None:
    """Return the dtype to which autocast casts on devices of this type, or None where it is off."""
    if device == "meta" or not torch.is_autocast_enabled(device):  # there is no autocast for meta tensors
        return None
    return torch.get_autocast_dtype(device)


def after_autocast(x: Tensor) -> torch.dtype:
    """Return the dtype of x once autocast, if it is on, has cast it: all but float64."""
    dtype = autocast_dtype(x.device.type)
    return x.dtype if dtype is None or x.dtype == torch.float64 else dtype
