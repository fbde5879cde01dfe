"""The consumers of random numbers. Each draws from counters of its own, so that no two ever share a word."""

from enum import IntEnum

GROUP_BITS = 56  # of a counter's group; the domain is the byte above
MAX_ELEMENTS = 4 << GROUP_BITS  # of a stream, four to a group


class Domain(IntEnum):
    """A consumer of random numbers. The values must not change: they are part of the definition of every draw."""

    NOISE = 0
    UNIFORM = 1
    UNIFORM_TIMES = 2
    NORMAL_TIMES = 3
    PERMUTATION = 4
    SIGNS = 5
    NORMAL_PROBES = 6
    INDEPENDENCE = 7

    @property
    def bits(self) -> int:
        """The domain as it stands in the 64-bit group index of a counter, equation (1) of README.md."""
        return self << GROUP_BITS
