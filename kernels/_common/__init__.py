"""Shared by the kernel families: the random generator, tiles of rows, launch helpers, compile cases."""
