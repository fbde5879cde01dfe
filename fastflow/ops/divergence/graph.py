"""Check that a field's value carries the derivative that is about to be taken.

A value that carries none has derivative 0 for PyTorch, without an error, however it depends on x. A value that loses
only a part of its graph cannot be told from one that has no such part.
"""

import torch
from torch import Tensor

from ..._torch import requires_grad_at_recording_level
from .._tangents import has_tangent

_CUT = "detach() or .data, torch.inference_mode(), or a value computed outside PyTorch (NumPy, .item())"
_CONSTANT = "Write a constant field as `0 * x + c`"


def check_graph(value: Tensor) -> None:
    """Raise unless value requires grad at the innermost level, where the graph of x is being recorded."""
    if not _at_this_level(value).requires_grad:
        raise no_graph_error()


def check_tangent(value: Tensor) -> None:
    """Raise unless value carries a tangent of the innermost jvp."""
    if not has_tangent(_at_this_level(value)):
        raise RuntimeError(
            "the field's value carries no tangent of x, so its derivative would be 0 whatever the field. "
            f"Causes: {_CUT}; torch.no_grad() alone keeps tangents. {_CONSTANT}"
        )


def check_recorded(value: Tensor, x: Tensor) -> None:
    """Raise if gradients of x are being recorded and value carries no graph."""
    if torch.is_grad_enabled() and requires_grad_at_recording_level(x) and not requires_grad_at_recording_level(value):
        raise no_graph_error()


def no_graph_error() -> RuntimeError:
    """Return the error for a field whose value has no graph that leads to x."""
    return RuntimeError(
        "the field's value carries no graph that leads to x, so its derivative would be 0 whatever the field. "
        f"Causes, inside the field: torch.no_grad(), {_CUT}. {_CONSTANT}"
    )


def _at_this_level(value: Tensor) -> Tensor:
    """Wrap a value of an outer level, such as a parameter, whose graph or tangent there says nothing about this one."""
    return value.view_as(value)
