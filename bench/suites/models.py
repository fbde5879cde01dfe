"""The models whose training steps and Jacobians are timed, and the attention that they are compared on."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastflow as ff

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DIGITS = "digits DiT"
LATENTS = (4, 32, 32)


def digits_dit() -> ff.nn.DiT:
    """The model of ``make demo`` for 8 × 8 digits."""
    return with_random_zeros(ff.nn.DiT(8, 2, 1, hidden_size=96, depth=4, num_heads=4, num_classes=10))


def preset(name: str) -> ff.nn.DiT:
    return with_random_zeros(ff.nn.DiT.preset(name, num_classes=10))


def with_random_zeros(model: ff.nn.DiT) -> ff.nn.DiT:
    """Draw the parameters that are zero: an untrained DiT returns zero, so any two implementations would agree."""
    for p in model.parameters():
        if not p.any():
            nn.init.normal_(p, std=0.05)
    return model


MODELS: dict[str, Callable[[], ff.nn.DiT]] = {
    DIGITS: digits_dit,
    "DiT-S/2": functools.partial(preset, "S/2"),
    "DiT-B/2": functools.partial(preset, "B/2"),
}
INPUT_SHAPES = {DIGITS: (1, 8, 8), "DiT-S/2": LATENTS, "DiT-B/2": LATENTS}


def labels(batch: int, device: torch.device) -> torch.Tensor:
    return torch.randint(10, (batch,), device=device)


def math_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask, is_causal=is_causal)
