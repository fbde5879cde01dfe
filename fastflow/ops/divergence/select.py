"""Choose the implementation that draws the probes and sums their dot products."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ... import _backend
from ...kernels.divergence import reference
from .custom_ops import Draw
from .rules import probe_dots


@dataclass(frozen=True)
class Implementation:
    """name: as the custom ops take it. dots: from Jacobian products and probes, ``[K, B, ...]``, to ``[K, B]``."""

    name: str
    dots: Callable[[Tensor, Tensor, Draw], Tensor]


_IMPLEMENTATIONS = {
    "reference": Implementation("reference", lambda products, probes, draw: reference.dots(products, probes)),
    "triton": Implementation("triton", lambda products, probes, draw: probe_dots(products, draw)),
}


def select(backend: str, *tensors: Tensor) -> Implementation:
    """Return the implementation for these tensors.

    Raises:
        ValueError: ``backend="triton"``, and the kernels cannot take the tensors.
    """
    return _IMPLEMENTATIONS[_backend.resolve(backend, "divergence", *tensors)]
