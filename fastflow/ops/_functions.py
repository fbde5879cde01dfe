"""The four functions from which ``_twice_differentiable.py`` makes an op."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ._calls import Backward, DualBackward, DualForward, Forward

Group = tuple[Any, ...]  # a NamedTuple of tensors
Call = Forward | Backward | DualForward | DualBackward


class Functions(ABC):
    """The four functions of an op, on tensors without autograd, and their fakes for torch.compile.

    A fake takes the same call and returns tensors of the right shape, dtype and strides. The default fakes promise
    contiguous gradients: make them so, or override the fakes.
    """

    @abstractmethod
    def forward(self, call: Forward) -> tuple[Tensor, Tensor]:
        """Return out and state ``[B, ...]``, a new tensor that the backward reads."""

    @abstractmethod
    def fake_forward(self, call: Forward) -> tuple[Tensor, Tensor]: ...

    @abstractmethod
    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        """Return the gradients of x, each with g's axis K if g has one: K cotangents share the op's work."""

    def fake_backward(self, call: Backward) -> tuple[Tensor, ...]:
        lead = call.g.shape[: call.g.ndim - call.saved.out.ndim]
        return tuple(y.new_empty((*lead, *y.shape)) for y in call.x)

    @abstractmethod
    def dual_forward(self, call: DualForward) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return out, t_out, state and t_state ``[K, B, ...]``; the tangents are ``[K, ...]`` or None, not all None."""

    @abstractmethod
    def fake_dual_forward(self, call: DualForward) -> tuple[Tensor, Tensor, Tensor, Tensor]: ...

    @abstractmethod
    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        """Return the gradients of x, then of the tangents; :func:`absent` for a tangent that is None."""

    def fake_dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        return tuple(absent(call.h) if y is None else y.new_empty(y.shape) for y in (*call.x, *call.tangents))

    def flops(self, call: Call) -> int:
        """Return the floating-point operations of the matmuls in a call that has shapes in place of tensors."""
        return 0


def absent(like: Tensor) -> Tensor:
    """Return an empty vector: an op cannot return None."""
    return like.new_empty(0)
