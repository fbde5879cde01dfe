"""Count the launches of a call and the bytes that each moves: Triton kernels by the interpreter, PyTorch's by dispatch.

The interpreter runs the kernels' own masked loads and stores, so their bytes are exact, without a GPU.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from fastflow import _torch
from fastflow.ops import _custom_op

_NO_KERNEL = ("empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided", "lift_fresh", "_unsafe_view")
_NO_KERNEL += ("_efficientzerotensor",)  # no memory


@dataclass
class Access:
    """Bytes of one tensor's storage that a launch moves. requested: by its instructions; touched: each byte once."""

    numel: int
    requested: int = 0
    touched: int = 0

    @property
    def repeats(self) -> float:
        return self.requested / max(1, self.touched)


@dataclass
class Launch:
    """One kernel. triton: False for PyTorch's. burst: the most bytes that a program loads between two of its stores."""

    name: str
    triton: bool
    programs: int = 1
    loads: list[Access] = field(default_factory=list)
    stores: list[Access] = field(default_factory=list)
    burst: int = 0

    @property
    def touched(self) -> int:
        """Bytes that go through the GPU's memory, if what a launch loads again is still in the L2 cache."""
        return sum(x.touched for x in (*self.loads, *self.stores))

    @property
    def requested(self) -> int:
        return sum(x.requested for x in (*self.loads, *self.stores))


@dataclass
class Traffic:
    launches: list[Launch] = field(default_factory=list)

    @property
    def touched(self) -> int:
        return sum(x.touched for x in self.launches)

    @property
    def requested(self) -> int:
        return sum(x.requested for x in self.launches)

    @property
    def names(self) -> Counter[str]:
        return Counter(x.name for x in self.launches)

    def repeats(self, least_bytes: int) -> float:
        """Return the most often that a kernel loads the same byte of a tensor of at least this size."""
        kernels = (x for x in self.launches if x.triton)
        return max((a.repeats for x in kernels for a in x.loads if a.touched >= least_bytes), default=1.0)


@contextlib.contextmanager
def counted() -> Iterator[Traffic]:
    """Count what runs inside: PyTorch's kernels on any device, Triton's in the interpreter."""
    traffic, can_skip = Traffic(), _torch.can_skip_dispatcher

    def can_skip_uncounted(*args: Any) -> bool:
        with _disable_current_modes():
            return can_skip(*args)

    with (
        mock.patch.object(_torch, "can_skip_dispatcher", can_skip_uncounted),
        _interpreted(traffic),
        _Dispatched(traffic),
    ):
        yield traffic


class _Dispatched(TorchDispatchMode):
    """Count every ATen kernel that PyTorch dispatches, those inside fastflow's custom ops too."""

    def __init__(self, traffic: Traffic) -> None:
        super().__init__()
        self.traffic = traffic
        self.own = {op._qualname: compute for op, compute in _custom_op._implementations.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.name in self.own:
            with self:
                return self.own[func._schema.name](*args, **kwargs)
        result = func(*args, **kwargs)
        inputs, outputs = _tensors((args, kwargs)), _tensors(result)
        if outputs and is_kernel(func):
            loads, stores = ([Access(x.numel(), n, n) for x in xs if (n := _bytes(x))] for xs in (inputs, outputs))
            self.traffic.launches.append(Launch(str(func.overloadpacket.__name__), False, 1, loads, stores))
        return result


def is_kernel(func: Any) -> bool:
    """Return True for an ATen op that does more than make a view or an uninitialised tensor."""
    namespace, _, name = func._schema.name.partition("::")
    view = any(x.alias_info is not None and not x.alias_info.is_write for x in func._schema.returns)
    return namespace == "aten" and not view and name not in _NO_KERNEL


def _tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def _bytes(x: Tensor) -> int:
    """Return the bytes of the elements that differ in their address: an expanded axis counts once."""
    return math.prod(n for n, stride in zip(x.shape, x.stride()) if stride) * x.dtype.itemsize if x.numel() else 0


@contextlib.contextmanager
def _interpreted(traffic: Traffic) -> Iterator[None]:
    from triton.runtime import interpreter

    if not isinstance(interpreter.interpreter_builder, interpreter.InterpreterBuilder):
        raise RuntimeError("Triton's interpreter is not what this counter knows")
    run, builder = interpreter.GridExecutor.__call__, interpreter.InterpreterBuilder
    load, store, place = builder.create_masked_load, builder.create_masked_store, builder.set_grid_idx
    current: list[_Meter] = []

    def launch(self: Any, *args: Any, **kwargs: Any) -> Any:
        tensors = [x for x in tree_leaves((args, tuple(kwargs.values()))) if isinstance(x, Tensor)]
        current.append(_Meter(self.fn.__name__, tensors))
        try:
            with _disable_current_modes():
                return run(self, *args, **kwargs)
        finally:
            traffic.launches.append(current.pop().launch())

    def counted_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        current[-1].load(ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)])
        return load(self, ptrs, mask, *rest)

    def counted_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any) -> Any:
        current[-1].store(ptrs.data[np.broadcast_to(mask.data, ptrs.data.shape)])
        return store(self, ptrs, value, mask, *rest)

    def placed(self: Any, *index: int) -> Any:
        current[-1].next_program()
        return place(self, *index)

    def refused(*_: Any, **__: Any) -> Any:
        raise NotImplementedError("atomics and descriptors are not counted")

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(interpreter.GridExecutor, "__call__", launch))
        changes = {"create_masked_load": counted_load, "create_masked_store": counted_store, "set_grid_idx": placed}
        names = ("create_atomic_rmw", "create_atomic_cas", "create_descriptor_load", "create_descriptor_store")
        for name, change in (changes | dict.fromkeys(names, refused)).items():
            stack.enter_context(mock.patch.object(builder, name, change))
        yield


class _Meter:
    """The accesses of one launch, by the storage of the tensor argument that they fall into."""

    def __init__(self, name: str, tensors: Iterable[Tensor]) -> None:
        storages = {x.untyped_storage().data_ptr(): x for x in tensors if x.numel()}
        self.name, self.programs, self.burst, self.running = name, 0, 0, 0
        self.starts = np.array(sorted(storages), dtype=np.uint64)
        self.tensors = [storages[int(start)] for start in self.starts]
        self.requested = np.zeros((2, len(self.tensors)), dtype=np.int64)
        self.seen = [[np.zeros(_elements(x), dtype=bool) for x in self.tensors] for _ in range(2)]

    def next_program(self) -> None:
        self.programs += 1
        self.running = 0

    def load(self, addresses: np.ndarray) -> None:
        self.running += self._count(0, addresses)
        self.burst = max(self.burst, self.running)

    def store(self, addresses: np.ndarray) -> None:
        self._count(1, addresses)
        self.running = 0

    def launch(self) -> Launch:
        loads, stores = (
            [
                Access(x.numel(), int(n), int(seen.sum()) * x.dtype.itemsize)
                for x, n, seen in zip(self.tensors, requested, bitmaps)
                if n
            ]
            for requested, bitmaps in zip(self.requested, self.seen)
        )
        return Launch(self.name, True, self.programs, loads, stores, self.burst)

    def _count(self, kind: int, addresses: np.ndarray) -> int:
        flat, total = addresses.ravel(), 0
        owners = np.searchsorted(self.starts, flat, side="right") - 1
        for i in np.unique(owners):
            x = self.tensors[i]
            mine = flat[owners == i]
            self.seen[kind][i][((mine - self.starts[i]) // np.uint64(x.dtype.itemsize)).astype(np.int64)] = True
            self.requested[kind, i] += mine.size * x.dtype.itemsize
            total += mine.size * x.dtype.itemsize
        return total


def _elements(x: Tensor) -> int:
    return x.untyped_storage().nbytes() // x.dtype.itemsize


def bytes_of(tensors: Sequence[Tensor | None]) -> int:
    """Return the bytes of the given tensors, each once."""
    return sum(_bytes(x) for x in tensors if x is not None)
