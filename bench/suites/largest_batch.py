"""Find the largest batch whose training step fits a GPU's memory: predict it, then try."""

from collections.abc import Callable


def predicted(peak: Callable[[int], int], small: int, capacity: int) -> int:
    """Extrapolate from the peak bytes of two small batches, as a constant plus a linear part."""
    low, high = peak(small), peak(2 * small)
    return small + int((capacity - low) * small / (high - low))


def largest(fits: Callable[[int], bool], guess: int, parts: int = 32) -> int:
    """Return a batch that fits while one larger by a 32nd of the guess does not; both were tried. 0 if none fits."""
    step, size = max(1, guess // parts), guess
    if fits(size):
        while fits(size + step):
            size += step
        return size
    while size > 0 and not fits(size):
        size -= step
    return max(0, size)
