"""Ordinary training: what PyTorch's own ops differentiate rightly, at less cost than an op's own Function."""

import torch

from .._torch import forward_mode_active
from ._many_cotangents import many_cotangents_expected


def is_ordinary() -> bool:
    """Return True in eager mode without forward mode, where one cotangent at a time is pulled back."""
    return not (torch.compiler.is_compiling() or forward_mode_active() or many_cotangents_expected())
