"""What suites, tuner and tests share: cases, timing, memory, rows, floors, kernel subjects."""
