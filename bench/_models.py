"""The models whose steps and Jacobians are timed."""

import torch
from torch import nn

import fastflow as ff


def digits_dit() -> ff.nn.DiT:
    """The model of ``make demo`` for 8 × 8 digits."""
    return awake(ff.nn.DiT(8, 2, 1, hidden_size=96, depth=4, num_heads=4, num_classes=10))


def awake(model: ff.nn.DiT) -> ff.nn.DiT:
    """Zero parameters drawn at random: an untrained DiT returns zero, and with zeros anything agrees."""
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return model


def labels(batch: int, device: torch.device) -> torch.Tensor:
    return torch.randint(10, (batch,), device=device)
