"""The ops of a Transformer block as problems: operands, tangents, cotangents, and the bytes that they must move."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import jvp, vmap

from bench.harness.pytorch_ops import OPS
from bench.harness.traffic import bytes_of

Mode = Literal["forward", "backward", "jvp", "joint", "many"]
SEVERAL = 3  # tangents of "many"
Function = Callable[..., Any]
_KEYWORDS = ("shift", "scale")  # the other operands are positional, because PyTorch gives them other names


@dataclass(frozen=True)
class Sizes:
    """B samples of N tokens of width D in H heads; the MLP is ``mlp`` wide."""

    B: int
    N: int
    D: int
    H: int

    @property
    def tokens(self) -> tuple[int, int, int]:
        return self.B, self.N, self.D

    @property
    def samples(self) -> tuple[int, int, int]:
        return self.B, 1, self.D

    @property
    def hidden(self) -> tuple[int, int, int]:
        return self.B, self.N, 4 * self.D

    @property
    def heads(self) -> tuple[int, int, int, int]:
        return self.B, self.H, self.N, self.D // self.H


@dataclass(frozen=True)
class BlockOp:
    """One op.

    shapes: of its operands by name. frozen: operands without a tangent, as weights are. constants: by name, without any
    derivative. options: its keywords. unread: operands that its backward has no use for, so that it need not read them.
    unwritten: operands whose gradient is a cotangent itself.
    """

    name: str
    function: str
    shapes: Callable[[Sizes], Mapping[str, Sequence[int]]]
    frozen: tuple[str, ...] = ()
    constants: Callable[[Sizes], Mapping[str, Tensor]] = lambda sizes: {}
    options: tuple[tuple[str, Any], ...] = ()
    unread: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()


def _angles(s: Sizes) -> dict[str, Tensor]:
    angles = torch.arange(s.N)[:, None] * 0.1 ** (torch.arange(s.D // s.H // 2) / (s.D // s.H // 2))
    return {"cos": angles.cos(), "sin": angles.sin()}


BLOCK_OPS = {
    op.name: op
    for op in (
        BlockOp(
            "linear",
            "linear",
            lambda s: {"x": s.tokens, "weight": (4 * s.D, s.D), "bias": (4 * s.D,)},
            frozen=("weight", "bias"),
            unread=("bias",),
        ),
        BlockOp(
            "layer norm, modulated",
            "layer_norm",
            lambda s: {"x": s.tokens, "shift": s.samples, "scale": s.samples},
            unread=("shift",),
        ),
        BlockOp(
            "RMS norm",
            "rms_norm",
            lambda s: {"x": s.tokens, "weight": (s.D,)},
            frozen=("weight",),
        ),
        BlockOp(
            "gated add",
            "gated_add",
            lambda s: {"x": s.tokens, "gate": s.samples, "y": s.tokens},
            unread=("x",),
            unwritten=("x",),
        ),
        BlockOp(
            "gated add + layer norm",
            "gated_add_layer_norm",
            lambda s: {"x": s.tokens, "gate": s.samples, "y": s.tokens, "shift": s.samples, "scale": s.samples},
            unread=("shift",),  # x stands for the sum, which is kept
        ),
        BlockOp("GELU", "gelu", lambda s: {"x": s.hidden}, options=(("approximate", "tanh"),)),
        BlockOp("SiLU", "silu", lambda s: {"x": s.hidden}),
        BlockOp("SwiGLU", "swiglu", lambda s: {"a": s.hidden, "b": s.hidden}),
        BlockOp("RoPE", "rope", lambda s: {"x": s.heads}, constants=_angles, unread=("x",)),
    )
}
KERNEL_OPS = [name for name in BLOCK_OPS if name != "linear"]  # PyTorch's GEMMs serve linear layers


@dataclass(frozen=True)
class BlockProblem:
    """An op on drawn operands. tangents: of all but frozen ones. g, h: cotangents of the outputs and their tangents."""

    op: BlockOp
    operands: Mapping[str, Tensor]
    constants: Mapping[str, Tensor]
    tangents: Mapping[str, Tensor]
    g: tuple[Tensor, ...]
    h: tuple[Tensor, ...]

    @staticmethod
    def draw(op: BlockOp, sizes: Sizes, dtype: torch.dtype, device: torch.device, seed: int = 0) -> "BlockProblem":
        generator = torch.Generator().manual_seed(seed)

        def randn(shape: Sequence[int]) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, dtype)

        operands = {name: randn(shape) for name, shape in op.shapes(sizes).items()}
        if "weight" in operands and operands["weight"].ndim == 2:
            operands["weight"] /= math.sqrt(sizes.D)
        tangents = {name: randn(x.shape) for name, x in operands.items() if name not in op.frozen}
        constants = {name: x.to(device, dtype) for name, x in op.constants(sizes).items()}
        problem = BlockProblem(op, operands, constants, tangents, (), ())
        outs = problem.outputs(OPS[op.function])
        g, h = (tuple(randn(y.shape) for y in outs) for _ in range(2))
        return replace(problem, g=g, h=h)

    def to(self, dtype: torch.dtype) -> "BlockProblem":
        maps = ({n: x.to(dtype) for n, x in m.items()} for m in (self.operands, self.constants, self.tangents))
        return BlockProblem(self.op, *maps, *(tuple(x.to(dtype) for x in xs) for xs in (self.g, self.h)))

    def outputs(self, function: Function, **operands: Tensor) -> tuple[Tensor, ...]:
        given = {**self.operands, **operands, **self.constants}
        keywords = {name: given.pop(name) for name in _KEYWORDS if name in given}
        out = function(*given.values(), **keywords, **dict(self.op.options))
        return out if isinstance(out, tuple) else (out,)

    def run(self, mode: Mode, function: Function) -> tuple[Tensor, ...]:
        """Return the outputs, their tangents and the gradients that a mode computes.

        Gradients are those of all operands and, in ``"joint"`` and ``"many"`` (several tangents), of their tangents.
        """
        tangents = {"jvp": 1, "joint": 1, "many": SEVERAL}.get(mode, 0)
        graph = mode not in ("forward", "jvp")
        with torch.set_grad_enabled(graph):
            values, wanted = self.recorded(function, tangents)
        if not graph:
            return values
        h = self.h if tangents == 1 else tuple(_rolled(y) for y in self.h)
        gradients = torch.autograd.grad(values, wanted, (*self.g, *(h if tangents else ())))
        return (*(y.detach() for y in values), *gradients)

    def recorded(self, function: Function, tangents: int = 1) -> tuple[tuple[Tensor, ...], list[Tensor]]:
        """Return the outputs, with their tangents, and the operands, with theirs, that have gradients in a graph.

        tangents: 0, 1, or several with a leading axis.
        """
        primals = {name: x.detach().requires_grad_() for name, x in self.operands.items()}
        if not tangents:
            return self.outputs(function, **primals), [*primals.values()]
        given = {name: x if tangents == 1 else _rolled(x) for name, x in self.tangents.items()}
        given = {name: x.detach().requires_grad_() for name, x in given.items()}
        rest = {name: x for name, x in primals.items() if name not in given}

        def f(*moving: Tensor) -> tuple[Tensor, ...]:
            return self.outputs(function, **rest, **dict(zip(given, moving)))

        def dual(*directions: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            return jvp(f, tuple(primals[name] for name in given), directions)

        along = dual if tangents == 1 else vmap(dual, out_dims=(None, 0))
        outs, t_outs = along(*given.values())
        return (*outs, *t_outs), [*primals.values(), *given.values()]

    def names(self, mode: Mode) -> list[str]:
        """Return the names of what :meth:`run` returns."""
        outs = ["out"] * len(self.g) + ["t_out"] * (len(self.h) if mode not in ("forward", "backward") else 0)
        gradients = [f"d{name}" for name in self.operands] if mode not in ("forward", "jvp") else []
        of_tangents = [f"dt_{name}" for name in self.tangents] if mode in ("joint", "many") else []
        return [*outs, *gradients, *of_tangents]

    def floor(self, *, backward: bool, tangent: bool = True) -> int:
        """Return the bytes of one pass, each input read once and each output written once.

        backward: of the backward alone, which reads the operands that it has a use for, their tangents and all
        cotangents, and writes the gradients; statistics of rows do not count. tangent: of the pass with tangents.
        """
        groups = (self.operands, self.tangents) if tangent else (self.operands,)
        outputs = [*self.g, *(self.h if tangent else ())]  # or cotangents, which have their shapes
        read = [x for xs in groups for name, x in xs.items() if not (backward and name in self.op.unread)]
        written = [x for xs in groups for name, x in xs.items() if backward and name not in self.op.unwritten]
        return bytes_of([*read, *self.constants.values(), *outputs, *written])


def _rolled(x: Tensor) -> Tensor:
    """Return several different tensors like x, ``[K, ...]``."""
    return torch.stack([x.roll(k, dims=-1) for k in range(SEVERAL)])
