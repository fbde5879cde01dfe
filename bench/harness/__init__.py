"""Code shared by suites, tuner and tests: cases, timing, memory, rows, floors, kernel subjects."""
