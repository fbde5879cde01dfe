"""The random draws of a run: every purpose has its own offsets, so that no two draws coincide."""

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import torch


class Purpose(IntEnum):
    """A purpose of randomness. The numbers must not change: a resumed run has to draw the same values."""

    NOISE = 0
    BRIDGE = 1
    TIMES = 2
    SHUFFLE = 3
    CLASS_DROPOUT = 4
    POINTS_UNIFORM = 5
    POINTS_NORMAL = 6
    SPLIT = 7
    SAMPLES = 8
    CLASSIFIER = 9
    DEQUANTISATION = 10
    PROBES = 11

    def at(self, step: int) -> int:
        """Return the generator's offset for this purpose at a step, batch or epoch, ``purpose << 48 | step``."""
        return self << 48 | step


@contextlib.contextmanager
def seeded_initialisation(seed: int) -> Iterator[None]:
    """Seed ``torch.nn.init``, and restore the global generator afterwards."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield
