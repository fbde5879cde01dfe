"""Benchmarks: suites, the harness that checks and times them, reports, the compile report and the tuner."""
