"""Random calls of the kernels, the same ones every time."""

import pytest

from tests.fuzz.judge import fault


@pytest.mark.slow
@pytest.mark.parametrize("op", ["attention", "flow_step"])
def test_random_calls(op: str) -> None:
    pytest.importorskip("triton")
    faults = [text for index in range(10) if (text := fault(op, 0, index, "triton")) is not None]
    assert not faults, f"{len(faults)} wrong:\n\n" + "\n\n".join(faults)
