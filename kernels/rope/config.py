"""The tile of the rope kernel, as data: each element is read and written once. It has not been timed on a GPU yet."""

PAIRS = 512  # of a program: eight elements a thread, 16 bytes of a 16-bit type
NUM_WARPS = 4


def block_of(pairs: int) -> int:
    """Return how many tokens a program takes; pairs: of a row, a power of two."""
    return max(1, PAIRS // pairs)
