"""Parse SASS, the machine code of NVIDIA GPUs, as ``cuobjdump -sass`` prints it: instructions and loops."""

import re
from dataclasses import dataclass
from functools import cached_property

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)\s*([^;]*?)\s*;", re.MULTILINE)
_HGMMA = re.compile(r"HGMMA\.(64)x(\d+)x(\d+)\.")
_HMMA = re.compile(r"HMMA\.(16)(8)(16|8|4)\b")
_MATRIX_BYTES = 128  # of an 8 × 8 matrix of 16-bit numbers; LDSM and STSM move 1, 2 or 4


@dataclass(frozen=True, order=True)
class Instruction:
    """One instruction of one warp. guard: its predicate, "" without one."""

    address: int
    guard: str
    opcode: str
    operands: str

    @cached_property
    def name(self) -> str:
        """The opcode without its modifiers."""
        return self.opcode.split(".")[0]

    @cached_property
    def flops(self) -> int:
        """FLOPs of a tensor-core instruction; four warps issue an HGMMA together."""
        shape = _HGMMA.match(self.opcode) or _HMMA.match(self.opcode)
        m, n, k = map(int, shape.groups()) if shape else (0, 0, 0)
        return 2 * m * n * k

    @cached_property
    def operand_bytes(self) -> int:
        """Bytes that an HGMMA reads from shared memory: B, and A unless it is in registers; a row is 32 bytes of k."""
        shape = _HGMMA.match(self.opcode)
        if not shape:
            return 0
        first_operand = self.operands.split(",")[1]
        return 32 * (int(shape[2]) + (int(shape[1]) if "gdesc" in first_operand else 0))

    @cached_property
    def bytes(self) -> int:
        """Bytes that a warp moves by a load or a store."""
        if self.name in ("LDSM", "STSM"):
            return _MATRIX_BYTES * int(self.opcode[-1] if self.opcode[-2:] in (".2", ".4") else 1)
        width = re.search(r"\.(?:[US](8|16)|(64|128))\b", self.opcode)
        return 32 * (int(width[1] or width[2]) // 8 if width else 4)

    @property
    def target(self) -> int | None:
        """The address that a branch jumps to."""
        return int(self.operands.split()[-1], 16) if self.name == "BRA" else None

    @property
    def falls_through(self) -> bool:
        """True if the next instruction can follow."""
        if self.name == "BRA":
            return bool(self.guard) or "," in self.operands
        return bool(self.guard) or self.name != "EXIT"


def parse(sass: str) -> list[Instruction]:
    """Return the instructions of a disassembly, which must hold one kernel."""
    return [Instruction(int(address, 16), *rest) for address, *rest in _LINE.findall(sass)]


def reachable(program: list[Instruction]) -> list[Instruction]:
    """Return what runs without a call, so no subroutines for rare operands, such as a 64-bit division."""
    return [program[i] for i in sorted(_reachable(_successors(program), 0))]


def loops(program: list[Instruction]) -> list[list[Instruction]]:
    """Return the instructions of every loop.

    A branch closes a loop if it jumps to an instruction that dominates it; the backward branch of a cold block that the
    compiler moved to the end does not. A loop holds what reaches the branch without passing its first instruction.
    """
    index = {x.address: i for i, x in enumerate(program)}
    successors = _successors(program)
    predecessors: list[list[int]] = [[] for _ in program]
    for i, following in enumerate(successors):
        for j in following:
            predecessors[j].append(i)
    live = _reachable(successors, 0)
    bodies: dict[int, set[int]] = {}
    for last in live:
        first = index.get(program[last].target, last)
        if first < last and last not in _reachable(successors, 0, without=first):
            bodies.setdefault(first, {first}).update(_reachable(predecessors, last, without=first))
    return [[program[i] for i in sorted(body)] for body in bodies.values()]


def _successors(program: list[Instruction]) -> list[list[int]]:
    index = {x.address: i for i, x in enumerate(program)}
    following = [[i + 1] if x.falls_through and i + 1 < len(program) else [] for i, x in enumerate(program)]
    for x, after in zip(program, following):
        if x.target is not None:
            after.append(index[x.target])
    return following


def _reachable(edges: list[list[int]], start: int, without: int = -1) -> set[int]:
    """Return start and the nodes reachable from it. without: a node that no path may pass."""
    seen, stack = {start}, [start]
    while stack:
        for node in edges[stack.pop()]:
            if node not in seen and node != without:
                seen.add(node)
                stack.append(node)
    return seen
