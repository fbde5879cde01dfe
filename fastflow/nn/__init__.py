"""Velocity networks: the diffusion Transformer for images and latents, an MLP for points."""

from .dit import DiT as DiT
from .mlp import VelocityMLP as VelocityMLP
from .rope import rope_table as rope_table
