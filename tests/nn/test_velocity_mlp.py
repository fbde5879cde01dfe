"""The velocity network of points."""

import pytest
import torch

from fastflow.nn import VelocityMLP


def test_it_is_the_benchmarks_network() -> None:
    model = VelocityMLP(2)
    assert sum(p.numel() for p in model.parameters()) == 3 * 64 + 64 + 2 * (64 * 64 + 64) + 64 * 2 + 2
    x, t = torch.randn(5, 2), torch.rand(5)
    assert model(x, t).shape == (5, 2)
    assert torch.equal(model(x, t[0]), model(x, t[0].expand(5)))
    assert not torch.equal(model(x, t), model(x, 1 - t))


@pytest.mark.parametrize(
    ("shape", "num_times", "y", "message"),
    [
        ((5, 3), 5, None, r"x must be \[B, 2\]"),
        ((5, 2), 4, None, "t must be"),
        ((5, 2), 5, torch.zeros(5), "no classes"),
    ],
)
def test_bad_input_is_named(shape: tuple[int, int], num_times: int, y: torch.Tensor | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VelocityMLP(2)(torch.zeros(shape), torch.zeros(num_times), y)
