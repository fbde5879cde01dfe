"""PyTorch's own ops in place of fastflow's in a model of ``fastflow.nn``: the baseline of training steps."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from torch import Tensor

from bench.harness.pytorch_ops import OPS, reference_of
from bench.suites.models import math_attention


@contextlib.contextmanager
def pytorch_ops(attention: Callable[..., Tensor] = math_attention, through_tangent: bool = True) -> Iterator[None]:
    """Run the models of ``fastflow.nn`` on PyTorch's ops and this attention.

    through_tangent: whether a gradient flows through a tangent, which ``F.layer_norm`` does not allow.
    """
    replacements = {name: reference_of(name, through_tangent) for name in OPS} | {"attention": attention}
    modules = [module for name, module in sys.modules.items() if f"{name}.".startswith("fastflow.nn.")]
    with contextlib.ExitStack() as stack:
        for module in modules:
            for name, replacement in replacements.items():
                if _is_op(getattr(module, name, None)):
                    stack.enter_context(mock.patch.object(module, name, replacement))
        yield


def _is_op(value: Any) -> bool:
    module = getattr(value, "__module__", None) or ""
    return module.startswith("fastflow.ops.") or (module == "fastflow.nn.norm" and value.__name__ == "layer_norm")
