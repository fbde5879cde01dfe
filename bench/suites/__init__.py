"""Benchmark suites, run by pytest: lists of cases, each with a baseline and a float64 truth."""
