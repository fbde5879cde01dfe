"""The linear layer of the velocity networks."""

from torch import Tensor, nn

from ..ops.linear import linear


class Linear(nn.Linear):
    """``x Wᵀ + b`` by :func:`fastflow.linear`, whose tangent multiplies no zeros and can be compiled.

    Arguments, initialisation and state_dict are those of ``nn.Linear``.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map ``[..., in_features]`` to ``[..., out_features]``."""
        return linear(input, self.weight, self.bias)


def initialized_linear(in_features: int, out_features: int, *, zero: bool = False) -> Linear:
    """Return a linear layer with zero bias and Xavier-uniform or zero weights."""
    layer = Linear(in_features, out_features)
    nn.init.zeros_(layer.weight) if zero else nn.init.xavier_uniform_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer
