"""The calls of a twice-differentiable op as named tuples, and their flat form.

``Function.apply`` and custom ops take flat argument lists only. A :class:`Layout` flattens a call into one, restores
it, and writes the op's schema, so that every signature is written once, as the fields of a NamedTuple.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

Call = TypeVar("Call", bound=tuple[Any, ...])


class Forward(NamedTuple):
    """outputs, state = f(x)."""

    x: Any
    constants: Any
    options: Any


class Backward(NamedTuple):
    """The gradients of x for cotangents g of the outputs, or for K of each, ``[K, ...]``; an absent one is None.

    out: the outputs that the op keeps, None for the others. wants: which gradients of x are used.
    """

    g: Any
    x: Any
    constants: Any
    out: Any
    state: Any
    options: Any
    wants: Any

    @property
    def has_many(self) -> bool:
        g = next(g for g in self.g if g is not None)
        return bool(g.ndim > self.x[0].ndim)


class DualForward(NamedTuple):
    """outputs, t_outputs, state, t_state = f(x) and its derivative in K directions; an absent tangent is None."""

    x: Any
    tangents: Any
    constants: Any
    options: Any


class DualBackward(NamedTuple):
    """The gradients of x and of its tangents for the cotangents g of the outputs, h of their tangents ``[K, ...]``.

    An absent cotangent is None. wants, t_wants: which gradients are used.
    """

    g: Any
    h: Any
    x: Any
    tangents: Any
    constants: Any
    out: Any
    t_out: Any
    state: Any
    t_state: Any
    options: Any
    wants: Any
    t_wants: Any


class Layout(Generic[Call]):
    """The flat form of a call: its groups of tensors, then its groups of plain values, one after another.

    groups: the NamedTuple type of each field.
    """

    def __init__(self, call: type[Call], groups: dict[str, type[tuple[Any, ...]]]) -> None:
        self.call = call
        self._slices: list[tuple[str, int, int, Any]] = []
        start = 0
        for name in call._fields:  # type: ignore[attr-defined]
            if name == "options":
                self.num_tensors = start
            stop = start + len(groups[name]._fields)  # type: ignore[attr-defined]
            self._slices.append((name, start, stop, groups[name]))
            start = stop
        self._length = start
        self._num_outputs, self._num_state = (len(groups[name]._fields) for name in ("out", "state"))  # type: ignore[attr-defined]

    def flatten(self, call: Call) -> tuple[Any, ...]:
        flat: list[Any] = []
        for group in call:
            flat.extend(group)  # Dynamo 2.11 cannot add a NamedTuple to a list
        return tuple(flat)

    def restore(self, flat: Sequence[Any]) -> Call:
        if len(flat) < self._length:  # the dispatcher drops trailing arguments that have their default
            flat = (*flat, *(True,) * (self._length - len(flat)))
        return self.call(*[group(*flat[a:b]) for _, a, b, group in self._slices])

    def partial(self, **groups: Any) -> tuple[Any, ...]:
        """Flatten a call of which only these groups are given; the rest is None."""
        flat: list[Any] = []
        for name, start, stop, _ in self._slices:
            group = groups.get(name)
            flat.extend([None] * (stop - start) if group is None else group)
        return tuple(flat)

    def of_results(self, **values: Any) -> tuple[Any, ...]:
        """Return a value for each result of a :class:`DualForward`, given one for each group of results."""
        num, num_state = self._num_outputs, self._num_state
        counts = {"outputs": num, "t_outputs": num, "state": num_state, "t_state": num_state}
        return tuple(value for name, count in counts.items() for value in [values[name]] * count)

    def schema(self) -> str:
        """Return the arguments of a custom op that takes this call, such as ``Tensor q, Tensor? mask, float scale``."""
        return ", ".join(f"{kind} {name}" for kind, name in self._arguments())

    def _arguments(self) -> Iterator[tuple[str, str]]:
        for name, _, _, group in self._slices:
            prefix, suffix = _PREFIXES.get(name, ""), "=True" if name in ("wants", "t_wants") else ""
            for field, hint in get_type_hints(group).items():
                kind = "bool" if suffix else _schema_type(hint)
                yield kind + "?" * (name in _OPTIONAL and kind == "Tensor"), prefix + field + suffix


_PREFIXES = {"g": "g_", "h": "h_", "tangents": "t_", "t_out": "t_", "t_state": "t_"}
_PREFIXES |= {"wants": "wants_", "t_wants": "wants_t_"}
_OPTIONAL = ("g", "h", "tangents", "out", "t_out")


def _schema_type(hint: Any) -> str:
    if hint in (float, int, bool, str):
        return hint.__name__
    return "Tensor?" if type(None) in get_args(hint) else "Tensor"
