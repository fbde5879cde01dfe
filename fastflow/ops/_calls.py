"""The calls of a twice-differentiable op as named tuples, and their flat form.

``Function.apply`` and custom ops take flat argument lists only. A :class:`Layout` flattens a call into one, restores
it, and writes the op's schema, so that every signature is written once, as the fields of a NamedTuple.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar, get_args, get_type_hints

Call = TypeVar("Call", bound=tuple[Any, ...])


class Forward(NamedTuple):
    """out, state = f(x)."""

    x: Any
    constants: Any
    options: Any


class Backward(NamedTuple):
    """The gradients of x for a cotangent g of out, or for K of them, ``[K, ...]``."""

    g: Any
    x: Any
    constants: Any
    saved: Any
    options: Any

    @property
    def has_many(self) -> bool:
        return bool(self.g.ndim > self.saved.out.ndim)


class DualForward(NamedTuple):
    """out, t_out, state, t_state = f(x) and its derivative in K directions; an absent tangent is None."""

    x: Any
    tangents: Any
    constants: Any
    options: Any


class DualBackward(NamedTuple):
    """The gradients of x and of its tangents for the cotangents g of out, h of t_out; an absent g is None."""

    g: Any
    h: Any
    x: Any
    tangents: Any
    constants: Any
    saved: Any
    options: Any


class Saved(NamedTuple):
    """The outputs of :class:`Forward` that its backward reads."""

    out: Any
    state: Any


class DualSaved(NamedTuple):
    """The outputs of :class:`DualForward` that its backward reads."""

    out: Any
    t_out: Any
    state: Any
    t_state: Any


class Layout(Generic[Call]):
    """The flat form of a NamedTuple whose fields are values or, where groups names a type, NamedTuples of values."""

    def __init__(self, call: type[Call], **groups: type[tuple[Any, ...]]) -> None:
        self.call = call
        self._groups = groups
        self._slices: list[tuple[int, int, type | None]] = []
        start = 0
        for name in call._fields:  # type: ignore[attr-defined]
            group = groups.get(name)
            stop = start + (1 if group is None else len(group._fields))  # type: ignore[attr-defined]
            self._slices.append((start, stop, group))
            start = stop

    def flatten(self, call: Call) -> tuple[Any, ...]:
        flat: list[Any] = []
        for value, (_, _, group) in zip(call, self._slices):
            if group is None:
                flat.append(value)
            else:
                flat.extend(value)  # Dynamo 2.11 cannot add a NamedTuple to a list
        return tuple(flat)

    def restore(self, flat: Sequence[Any]) -> Call:
        return self.call(*[flat[a] if group is None else group(*flat[a:b]) for a, b, group in self._slices])

    def partial(self, **fields: Any) -> tuple[Any, ...]:
        """Flatten a call of which only these fields are given; the rest is None."""
        flat: list[Any] = []
        for name, (start, stop, group) in zip(self.call._fields, self._slices):  # type: ignore[attr-defined]
            value = fields.get(name)
            flat.extend([None] * (stop - start) if value is None else [value] if group is None else value)
        return tuple(flat)

    def schema(self) -> str:
        """Return the arguments of a custom op that takes this call, such as ``Tensor q, Tensor? mask, float scale``."""
        return ", ".join(f"{kind} {name}" for kind, name in self._arguments())

    def _arguments(self) -> Iterator[tuple[str, str]]:
        for name in self.call._fields:  # type: ignore[attr-defined]
            if name in self._groups:
                prefix, optional = ("t_", "?") if name == "tangents" else ("", "")
                for field, hint in get_type_hints(self._groups[name]).items():
                    yield _schema_type(hint) + optional, prefix + field
            else:
                yield "Tensor?" if name == "g" and self.call is DualBackward else "Tensor", name


def _schema_type(hint: Any) -> str:
    if hint in (float, int, bool, str):
        return hint.__name__
    return "Tensor?" if type(None) in get_args(hint) else "Tensor"
