"""Compile reports and instruction budgets of the kernels, made without a GPU."""
