"""Rotary position embedding: reference, PyTorch's kernels, Triton kernel."""
