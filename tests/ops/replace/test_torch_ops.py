"""Search PyTorch's ops for derivatives that are silently wrong; ``replace_ops`` leaves none."""

import pytest
import torch

from tests.ops.replace import table
from tests.ops.replace.central_differences import MODES, RIGHT, WRONG
from tests.ops.replace.torch_ops import OPS

DOCUMENTED = table.written()
IS_DOCUMENTED_VERSION = torch.__version__.startswith("2.13.")


def test_the_page_lists_every_op() -> None:
    if IS_DOCUMENTED_VERSION:
        assert set(DOCUMENTED) == set(OPS)
    assert table.HEAD.splitlines()[0] in table.PAGE.read_text()


@pytest.mark.parametrize("name", OPS)
def test_no_op_is_wrong_inside(name: str) -> None:
    """Any op: right, or PyTorch's error, as the page says."""
    actual = table.verdicts(name, replaced=True)
    assert WRONG not in actual, dict(zip(MODES, actual))
    if IS_DOCUMENTED_VERSION:
        assert actual == DOCUMENTED[name][1], "run python -m tests.ops.replace.table"


@pytest.mark.parametrize("name", [name for name, (before, _) in DOCUMENTED.items() if set(before) != {RIGHT}])
def test_the_page_tells_what_pytorch_does(name: str) -> None:
    """A failure means that PyTorch has changed: write the page again, and drop a replacement that is needed no more."""
    if not IS_DOCUMENTED_VERSION:
        pytest.skip("the page describes PyTorch 2.13")
    assert table.verdicts(name, replaced=False) == DOCUMENTED[name][0]
