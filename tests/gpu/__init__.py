"""Checks of the kernels on real hardware: ``python -m tests.gpu``."""
