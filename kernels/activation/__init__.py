"""GELU and SiLU, alone or times a second tensor: reference, PyTorch's kernels in blocks, Triton kernels."""
