"""Bytes and launches of the block ops, counted in Triton's interpreter, and the bandwidth that they predict."""
