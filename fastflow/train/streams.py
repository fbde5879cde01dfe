"""Which offset of the counter-based generator serves which purpose, so that no two draws of a run coincide."""

import contextlib
from collections.abc import Iterator
from enum import IntEnum

import torch


class Stream(IntEnum):
    """A purpose of randomness. The numbers are part of the file format: a resumed run must draw what it would have."""

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
        """The generator's offset for this purpose at this step, batch or epoch: ``stream << 48 | step``."""
        return self << 48 | step


@contextlib.contextmanager
def seeded_initialisation(seed: int) -> Iterator[None]:
    """Let ``torch.nn.init`` draw from this seed, and leave the global generator as it was."""
    with torch.random.fork_rng(devices=()):
        torch.default_generator.manual_seed(seed)
        yield
