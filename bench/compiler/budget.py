"""Model the cycles that each pipe of an H100 needs for one iteration of a kernel's main loop, from its machine code."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bench.compiler import sass as machine_code
from bench.harness.roofline import kernel_gemms

# H100 SXM5, NVIDIA's data sheet: 132 SMs, 3.35 TB/s, and 989.4 TFLOP/s of dense bf16 = 132 × 4096 FLOPs × 1.83 GHz
SMS = 132
CLOCK = 1.83e9
HBM = 3.35e12
TENSOR_ROOF = {"16-bit": 4096, "TF32": 2048}  # FLOPs a clock and SM
TENSOR_PEAK = SMS * CLOCK * TENSOR_ROOF["16-bit"]
MMA_SYNC = 0.63  # share of the roof that HMMA reaches on Hopper, arXiv:2501.12084

# Threads a clock and SM: CUDA C++ Programming Guide, throughput of native arithmetic instructions, compute capability
# 9.0. Pipes that classes share: Nsight Compute's pipeline descriptions (IMAD on one of the two halves of FMA, F2FP on
# ALU, other conversions on MUFU's unit).
PIPES: dict[str, tuple[int, tuple[str, ...]]] = {
    "MUFU": (16, ("exp2", "other MUFU")),
    "FMA": (128, ("FP32", "IMAD")),
    "IMAD": (64, ("IMAD",)),
    "ALU": (64, ("FP32 compare", "conversion", "integer")),
    "issue": (128, ("issued",)),  # four schedulers with one warp instruction each
}
# Bytes per clock and SM. Shared memory: the guide's 32 banks of 4 bytes. L2: A100's 5120 per clock, as NVIDIA gives
# none for H100.
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

# Limits of an SM; a block takes 1 KB of shared memory for itself, registers are allocated to warps in units of 256.
_REGISTERS, _SHARED_MEMORY, _WARPS, _BLOCKS = 65536, 228 << 10, 64, 32


class Prediction(NamedTuple):
    """cycles: of an iteration, by pipe. rate: in TFLOP/s with tensor-core instructions, else in GB/s."""

    cycles: dict[str, float]
    bound: str
    rate: float
    share: float


def budget(case: Any, sass: str, registers: int, shared: int) -> dict[str, Any]:
    """Count what a CTA issues in one iteration of its main loop: warp instructions by class, FLOPs and bytes.

    part: ``"loop"``, or ``"body"`` without a loop. ctas: the number that fit an SM. math_flops: see ``math_flops``.
    tensor_flops: issued FLOPs. operand_bytes: read from shared memory by wgmma. shared_bytes, local_bytes: an access of
    a warp takes a cycle at least, so it counts SHARED bytes at least.
    """
    part, instructions = main_part(machine_code.parse(sass))
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


def main_part(program: list[machine_code.Instruction]) -> tuple[str, Sequence[machine_code.Instruction]]:
    """Return the innermost loop with the most tensor-core FLOPs, else the most global bytes, else the whole kernel.

    Ties go to the shortest loop, which masks no logits: long sequences spend their time there.
    """
    totals = [(loop, _count(loop)) for loop in machine_code.loops(program)]
    for work in ("tensor_flops", "global_bytes"):
        working = {frozenset(loop): counts[work] for loop, counts in totals if counts[work]}
        innermost = {loop: n for loop, n in working.items() if not any(other < loop for other in working)}
        if innermost:
            return "loop", sorted(max(innermost, key=lambda loop: (innermost[loop], -len(loop))))
    return "body", machine_code.reachable(program)


def math_flops(case: Any) -> int:
    """Return the FLOPs of attention's equations on one tile, 0 for other kernels.

    The padding of the head dim and the second and third GEMM of TF32x3 do not count.
    """
    constants = case.constants
    gemms = kernel_gemms(case.name.split()[0], constants.get("TANGENTS", 1)) if "HEAD_DIM" in constants else 0
    return 2 * gemms * constants["BLOCK_M"] * constants["BLOCK_N"] * constants["HEAD_DIM"] if gemms else 0


def ctas_per_sm(registers: int, shared: int, num_warps: int) -> int:
    """Return the number of blocks that fit an SM."""
    of_a_warp = -(-registers * 32 // 256) * 256
    return min(_REGISTERS // (of_a_warp * num_warps), _SHARED_MEMORY // (shared + 1024), _WARPS // num_warps, _BLOCKS)


def predict(counts: Mapping[str, Any]) -> Prediction:
    """Return the rate if the busiest pipe never waits."""
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


def _count(instructions: Sequence[machine_code.Instruction]) -> dict[str, int]:
    """Count instructions by class, their FLOPs and bytes; both sides of a branch count."""
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


def _tensor_op(instructions: Sequence[machine_code.Instruction]) -> tuple[str, int]:
    """Return the tensor-core instruction of a loop with its operands' dtype, and the number of warps that issue it."""
    ops = {f"{x.name} {'TF32' if '.TF32' in x.opcode else '16-bit'}" for x in instructions if x.flops}
    if len(ops) > 1:
        raise ValueError(f"a loop must have one kind of tensor-core instruction, got {sorted(ops)}")
    op = next(iter(ops), "")
    return op, 4 if op.startswith("HGMMA") else 1
