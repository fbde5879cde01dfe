"""The one rule for the dtype of intermediate results: at least float32."""

import torch
from torch import Tensor


def at_least_float32(*xs: Tensor | torch.dtype) -> torch.dtype:
    """Return float64 if any of xs is float64, else float32."""
    wide = any((x.dtype if isinstance(x, Tensor) else x) == torch.float64 for x in xs)
    return torch.float64 if wide else torch.float32
