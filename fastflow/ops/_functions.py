"""The functions from which ``_twice_differentiable.py`` makes an op."""

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from ._calls import Backward, DualBackward, DualForward, Forward

Group = tuple[Any, ...]  # a NamedTuple of tensors
Call = Forward | Backward | DualForward | DualBackward


class Functions(ABC):
    """The four functions of an op, on tensors without autograd, and their fakes for torch.compile.

    A fake takes the same call and returns tensors of the right shape, dtype and strides. The default fakes promise
    contiguous tensors: make them so, or override the fakes. A gradient may be the cotangent itself; custom ops copy it.
    """

    @abstractmethod
    def forward(self, call: Forward) -> tuple[Tensor, ...]:
        """Return the outputs, then the state: new tensors ``[B, ...]`` that the backward reads."""

    @abstractmethod
    def fake_forward(self, call: Forward) -> tuple[Tensor, ...]: ...

    @abstractmethod
    def backward(self, call: Backward) -> tuple[Tensor, ...]:
        """Return the gradients of x, with the axis K of g if it has one: K cotangents share the op's work.

        :func:`absent` for an x that is None, and for one that is not wanted.
        """

    def fake_backward(self, call: Backward) -> tuple[Tensor, ...]:
        g = next(g for g in call.g if g is not None)
        lead = g.shape[: g.ndim - call.x[0].ndim]
        return tuple(
            y.new_empty((*lead, *y.shape)) if y is not None and wanted else absent(g)
            for y, wanted in zip(call.x, call.wants)
        )

    @abstractmethod
    def dual_forward(self, call: DualForward) -> tuple[Tensor, ...]:
        """Return outputs, t_outputs, state and t_state; the tangents are ``[K, ...]`` or None, not all None."""

    def fake_dual_forward(self, call: DualForward) -> tuple[Tensor, ...]:
        results = self.fake_forward(Forward(call.x, call.constants, call.options))
        K = next(t for t in call.tangents if t is not None).shape[0]
        outputs, state = results[: self.num_outputs], results[self.num_outputs :]
        t_outputs, t_state = ([y.new_empty((K, *y.shape)) for y in group] for group in (outputs, state))
        return (*outputs, *t_outputs, *state, *t_state)

    @abstractmethod
    def dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        """Return the gradients of x, then of the tangents; :func:`absent` for what is None or not wanted."""

    def fake_dual_backward(self, call: DualBackward) -> tuple[Tensor, ...]:
        like = next(h for h in call.h if h is not None)
        operands = zip((*call.x, *call.tangents), (*call.wants, *call.t_wants))
        return tuple(y.new_empty(y.shape) if y is not None and wanted else absent(like) for y, wanted in operands)

    def plain(self, call: Forward) -> tuple[Tensor, ...] | None:
        """Return the outputs by PyTorch's own ops, whose derivatives are right without forward mode, or None."""
        return None

    def reference(self, call: Forward) -> tuple[Tensor, ...] | None:
        """Return the outputs written out in PyTorch, for torch.compile to fuse with what surrounds them, or None."""
        return None

    def dual_reference(self, call: DualForward) -> tuple[Tensor, ...]:
        """Return outputs and t_outputs written out, where :meth:`reference` writes out the outputs."""
        raise NotImplementedError

    def flops(self, call: Call) -> int:
        """Return the floating-point operations of the matmuls in a call that has shapes in place of tensors."""
        return 0

    num_outputs = 1  # set by TwiceDifferentiable


def absent(like: Tensor) -> Tensor:
    """Return an empty vector: an op cannot return None."""
    return like.new_empty(0)
