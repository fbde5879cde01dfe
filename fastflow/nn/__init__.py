"""Velocity networks: the diffusion Transformer for images and latents, an MLP for points."""

from fastflow.nn.dit import DiT as DiT
from fastflow.nn.mlp import VelocityMLP as VelocityMLP
