"""Random calls of every op in random modes of differentiation, against float64 PyTorch: ``python -m tests.fuzz``."""
