"""What one iteration of a kernel's main loop asks of each pipe of an H100, counted in its machine code: a model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench import _sass

# H100 SXM5, NVIDIA's data sheet: 132 SMs, 3.35 TB/s, and 989.4 TFLOP/s of dense bf16 = 132 × 4096 FLOPs × 1.83 GHz
SMS = 132
CLOCK = 1.83e9
HBM = 3.35e12
TENSOR_ROOF = {"16-bit": 4096, "TF32": 2048}  # FLOPs a clock and SM
TENSOR_PEAK = SMS * CLOCK * TENSOR_ROOF["16-bit"]
MMA_SYNC = 0.63  # of the roof is what HMMA reaches on Hopper: measured, arXiv:2501.12084

# Threads a clock and SM: CUDA C++ Programming Guide, throughput of native arithmetic instructions, compute capability
# 9.0. Which classes share a pipe: Nsight Compute's pipeline descriptions (IMAD is on one of the two halves of FMA, F2FP
# on ALU, other conversions on MUFU's unit).
PIPES: dict[str, tuple[int, tuple[str, ...]]] = {
    "MUFU": (16, ("exp2", "other MUFU")),
    "FMA": (128, ("FP32", "IMAD")),
    "IMAD": (64, ("IMAD",)),
    "ALU": (64, ("FP32 compare", "conversion", "integer")),
    "issue": (128, ("issued",)),  # four schedulers, a warp instruction each
}
# Bytes a clock and SM. Shared memory: the guide's 32 banks of 4 bytes. L2: A100's 5120 a clock; none is given for H100.
SHARED = 128
L2 = 5120 / SMS

CLASSES = {
    "tensor": "HGMMA HMMA",
    "exp2": "MUFU.EX2",
    "other MUFU": "MUFU F2F F2I I2F FRND POPC FLO BREV",
    "FP32": "FADD FMUL FFMA HADD2 HMUL2 HFMA2",
    "FP32 compare": "FMNMX FSEL FSET FSETP FCHK",
    "conversion": "F2FP I2FP",
    "IMAD": "IMAD IMUL IDP",
    "integer": "IADD3 VIADD VIADDMNMX IABS IMNMX VIMNMX ISETP SEL LEA LOP3 PLOP3 SHF PRMT SGXT BMSK MOV P2R R2P",
    "shuffle": "SHFL",
    "shared": "LDS STS LDSM STSM",
    "global": "LDG STG RED ATOMG",
    "global to shared": "LDGSTS",
    "local": "LDL STL",
}
_CLASS_OF = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes.split()}

_TILE = ("BLOCK_M", "BLOCK_N", "TANGENTS")

# Matrix products a tile of the backward: kernels/attention/README.md
_GEMMS = {"dkdv-plain": 4, "dkdv-primal": 10, "dkdv-joint": 12, "dq-plain": 3, "dq-primal": 8, "dq-joint": 9}

# Of an SM; a block takes another KB of shared memory, a warp's registers are allocated by 256
_REGISTERS, _SHARED_MEMORY, _WARPS, _BLOCKS = 65536, 228 << 10, 64, 32


class Prediction(NamedTuple):
    """cycles: of an iteration, by pipe. rate: TFLOP/s of a kernel with tensor-core instructions, else GB/s."""

    cycles: dict[str, float]
    bound: str
    rate: float
    share: float


def budget(case: Any, sass: str, registers: int, shared: int) -> dict[str, Any]:
    """What a CTA issues in one iteration of its main loop: warp instructions by class, FLOPs and bytes.

    part: ``"loop"``, or ``"body"`` where there is none. ctas: how many an SM holds. math_flops: as ``math_flops`` says;
    tensor_flops: what is issued. operand_bytes: what wgmma reads from shared memory. shared_bytes and local_bytes: a
    warp's access takes a cycle at least, and counts as SHARED.
    """
    part, instructions = main_part(_sass.parse(sass))
    tensor_op, wide = _tensor_op(instructions)
    totals = _count(instructions)
    tensor = {name: totals.pop(name) * case.num_warps // wide for name in ("tensor_flops", "operand_bytes")}
    return {
        "part": part,
        **{name.lower(): case.constants[name] for name in _TILE if name in case.constants},
        "ctas": ctas_per_sm(registers, shared, case.num_warps),
        "math_flops": math_flops(case),
        "tensor_op": tensor_op,
        **tensor,
        **{name: n * case.num_warps for name, n in totals.items()},
    }


def main_part(program: list[_sass.Instruction]) -> tuple[str, Sequence[_sass.Instruction]]:
    """The innermost loop with the most tensor-core FLOPs, or without any the most global bytes; else the whole kernel.

    Of equals the shortest: it masks no logits, and is where a long sequence spends its time.
    """
    totals = [(loop, _count(loop)) for loop in _sass.loops(program)]
    for work in ("tensor_flops", "global_bytes"):
        working = {frozenset(loop): counts[work] for loop, counts in totals if counts[work]}
        innermost = {loop: n for loop, n in working.items() if not any(other < loop for other in working)}
        if innermost:
            return "loop", sorted(max(innermost, key=lambda loop: (innermost[loop], -len(loop))))
    return "body", _sass.reachable(program)


def math_flops(case: Any) -> int:
    """FLOPs of the matrix products that attention's equations ask for on one tile, 0 for other kernels.

    Not counted: padding of the head dim, and the second and third product of TF32x3.
    """
    constants, direction = case.constants, case.name.split()[0]
    gemms = 2 + 4 * constants["TANGENTS"] if "TANGENTS" in constants else _GEMMS.get(direction, 0)
    return 2 * gemms * constants["BLOCK_M"] * constants["BLOCK_N"] * constants["HEAD_DIM"] if gemms else 0


def ctas_per_sm(registers: int, shared: int, num_warps: int) -> int:
    """How many blocks fit an SM."""
    of_a_warp = -(-registers * 32 // 256) * 256
    return min(_REGISTERS // (of_a_warp * num_warps), _SHARED_MEMORY // (shared + 1024), _WARPS // num_warps, _BLOCKS)


def predict(counts: Mapping[str, Any]) -> Prediction:
    """The rate at which the busiest pipe would be busy all the time."""
    cycles = {pipe: 32 * sum(counts[name] for name in names) / rate for pipe, (rate, names) in PIPES.items()}
    through_l1 = counts["operand_bytes"] + counts["shared_bytes"] + counts["local_bytes"]
    cycles["shared"] = through_l1 / SHARED + counts["shuffle"]
    op, _, dtype = counts["tensor_op"].partition(" ")
    if op:
        cycles["tensor"] = counts["tensor_flops"] / TENSOR_ROOF[dtype] / (MMA_SYNC if op == "HMMA" else 1)
        cycles["L2"] = counts["global_bytes"] / L2
        work, unit, roof = counts["math_flops"], 1e12, SMS * CLOCK * TENSOR_ROOF[dtype]
    else:
        cycles["HBM"] = counts["global_bytes"] * SMS * CLOCK / HBM
        work, unit, roof = counts["global_bytes"], 1e9, HBM
    bound = max(cycles, key=lambda pipe: cycles[pipe])
    rate = work * SMS * CLOCK / cycles[bound]
    return Prediction(cycles, bound, rate / unit, rate / roof)


def _count(instructions: Sequence[_sass.Instruction]) -> dict[str, int]:
    """Instructions by class, and what they do; both sides of a branch count."""
    classes = Counter(_CLASS_OF.get("MUFU.EX2" if x.opcode.startswith("MUFU.EX2") else x.name) for x in instructions)
    moved: Counter[str] = Counter()
    for x in instructions:
        space = _CLASS_OF.get(x.name, "")
        if "global" in space:
            moved["global_bytes"] += x.bytes
        if "shared" in space or space == "local":
            moved["local_bytes" if space == "local" else "shared_bytes"] += max(x.bytes, SHARED)
    return {
        "tensor_flops": sum(x.flops for x in instructions),
        "operand_bytes": sum(x.operand_bytes for x in instructions),
        **{name: moved[name] for name in ("shared_bytes", "global_bytes", "local_bytes")},
        **{name: classes[name] for name in CLASSES},
        "other": classes[None],
        "issued": len(instructions),
    }


def _tensor_op(instructions: Sequence[_sass.Instruction]) -> tuple[str, int]:
    """The tensor-core instruction of a loop, with the operands' dtype, and how many warps issue one together."""
    ops = {f"{x.name} {'TF32' if '.TF32' in x.opcode else '16-bit'}" for x in instructions if x.flops}
    if len(ops) > 1:
        raise ValueError(f"a loop must have one kind of tensor-core instruction, got {sorted(ops)}")
    op = next(iter(ops), "")
    return op, 4 if op.startswith("HGMMA") else 1
