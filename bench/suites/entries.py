"""Every entry that the suites measure, without drawing a tensor."""

import itertools
from collections.abc import Iterator

from bench.harness.case import Entry
from bench.suites import test_attention, test_block_ops, test_divergence, test_flow_step, test_scaling, test_training

_SUITES = (test_attention, test_scaling, test_block_ops, test_divergence, test_training, test_flow_step)


def entries(cuda: bool) -> Iterator[Entry]:
    """Yield the entries measured on a GPU, or on a CPU."""
    return itertools.chain.from_iterable(suite.entries(cuda) for suite in _SUITES)
