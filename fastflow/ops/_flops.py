"""Count the floating-point operations of custom ops in ``torch.utils.flop_counter``.

The counter imports Triton. So the formulas are registered when someone else imports it, not when fastflow is imported.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"
_formulas: list[tuple[Any, Callable[..., int]]] = []


def count_flops(packet: Any, formula: Callable[..., int]) -> None:
    """Register the formula of a custom op, ``torch.ops.namespace.name``.

    formula: takes the op's arguments, shapes in place of tensors, and ``out_shape``.
    """
    _formulas.append((packet, formula))
    if _COUNTER in sys.modules:
        sys.modules[_COUNTER].register_flop_formula(packet)(formula)


class _OnImport(MetaPathFinder):
    """Register every formula after the counter has been imported."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            for packet, formula in _formulas:
                module.register_flop_formula(packet)(formula)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _OnImport())
