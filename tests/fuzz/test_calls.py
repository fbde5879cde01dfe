"""Random calls, the same ones every time; ``python -m tests.fuzz`` makes 3,000, ``--seed N`` others."""

import logging

import pytest

from tests.fuzz.judge import OPS, fault


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_random_calls(op: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="fastflow")
    faults = [text for index in range(200) if (text := fault(op, 0, index)) is not None]
    assert not faults, f"{len(faults)} wrong:\n\n" + "\n\n".join(faults)
