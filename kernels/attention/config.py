"""Launch configurations of the attention kernels, as data.

Each row was chosen from compiler output, recorded in bench/results/compile_report.md: the largest tile that fits shared
memory and does not spill, or the one that spills least of those tried. On sm_90, the rates that
bench/results/instruction_budget.md predicts decided among tiles that spill no more; README.md lists the rows that this
changed and the faster tiles that were rejected. No row has been timed on a GPU yet.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Config:
    """A tile of block_m queries by block_n keys. tangents: how many tangents one forward program holds."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    tangents: int = 1


WIDTHS = (64, 80, 96, 128, 256)  # upper bounds of max(head dim, value dim)
DIRECTIONS = (
    "forward-plain", "forward", "forward-many",
    "dkdv-plain", "dkdv-primal", "dkdv-joint",
    "dq-plain", "dq-primal", "dq-joint",
)  # fmt: skip

# (architecture or fp32, width): one row per direction. A side without a joint row is launched as primal, then plain.
_TABLE: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {
    ("sm_90", 64): {
        "forward-plain": (128, 128, 8, 3), "forward": (128, 64, 8, 3), "forward-many": (128, 32, 8, 3, 2),
        "dkdv-plain": (64, 128, 8, 3), "dkdv-primal": (32, 128, 8, 3), "dkdv-joint": (32, 128, 8, 2),
        "dq-plain": (128, 64, 8, 3), "dq-primal": (128, 64, 8, 3), "dq-joint": (128, 64, 8, 3),
    },
    ("sm_90", 80): {
        "forward-plain": (128, 128, 8, 3), "forward": (128, 64, 8, 3), "forward-many": (128, 32, 8, 3, 2),
        "dkdv-plain": (64, 128, 8, 3), "dkdv-primal": (32, 128, 8, 3),
        "dq-plain": (128, 64, 8, 3), "dq-primal": (128, 64, 8, 3), "dq-joint": (128, 32, 8, 3),
    },
    ("sm_90", 96): {
        "forward-plain": (128, 128, 8, 3), "forward": (128, 64, 8, 3), "forward-many": (128, 32, 8, 3, 2),
        "dkdv-plain": (64, 128, 8, 3), "dkdv-primal": (32, 128, 8, 3),
        "dq-plain": (128, 64, 8, 3), "dq-primal": (128, 32, 8, 3), "dq-joint": (128, 32, 8, 3),
    },
    ("sm_90", 128): {
        "forward-plain": (128, 128, 8, 2), "forward": (128, 32, 8, 3), "forward-many": (128, 32, 8, 3),
        "dkdv-plain": (64, 128, 8, 2), "dkdv-primal": (32, 128, 8, 2),
        "dq-plain": (128, 64, 8, 3), "dq-primal": (128, 32, 8, 3), "dq-joint": (128, 32, 8, 3),
    },
    ("sm_90", 256): {
        "forward-plain": (128, 64, 8, 2), "forward": (64, 32, 8, 2), "forward-many": (64, 32, 8, 2),
        "dkdv-plain": (32, 64, 8, 2), "dkdv-primal": (16, 64, 8, 2),
        "dq-plain": (128, 32, 8, 3), "dq-primal": (64, 16, 4, 3),
    },
    ("sm_100", 64): {
        "forward-plain": (128, 128, 8, 2), "forward": (128, 64, 8, 2), "forward-many": (128, 32, 8, 2, 2),
        "dkdv-plain": (64, 128, 8, 2), "dkdv-primal": (32, 128, 8, 2), "dkdv-joint": (32, 64, 4, 2),
        "dq-plain": (128, 64, 8, 2), "dq-primal": (128, 32, 8, 2), "dq-joint": (128, 32, 8, 2),
    },
    ("sm_100", 80): {
        "forward-plain": (128, 64, 8, 2), "forward": (128, 32, 8, 2), "forward-many": (128, 32, 8, 2),
        "dkdv-plain": (32, 128, 8, 2), "dkdv-primal": (16, 64, 4, 2),
        "dq-plain": (128, 32, 8, 2), "dq-primal": (64, 32, 4, 2),
    },
    ("sm_100", 96): {
        "forward-plain": (128, 64, 8, 2), "forward": (128, 32, 8, 2), "forward-many": (128, 32, 8, 2),
        "dkdv-plain": (32, 128, 8, 2), "dkdv-primal": (16, 64, 4, 2),
        "dq-plain": (128, 32, 8, 2), "dq-primal": (64, 32, 4, 2),
    },
    ("sm_100", 128): {
        "forward-plain": (128, 64, 8, 2), "forward": (128, 32, 8, 2), "forward-many": (128, 32, 8, 2),
        "dkdv-plain": (32, 128, 8, 2), "dkdv-primal": (16, 64, 4, 2),
        "dq-plain": (128, 32, 8, 2), "dq-primal": (128, 32, 8, 2),
    },
    ("sm_100", 256): {
        "forward-plain": (64, 32, 4, 2), "forward": (32, 32, 8, 2), "forward-many": (32, 32, 8, 2),
        "dkdv-plain": (32, 64, 8, 2), "dkdv-primal": (16, 32, 8, 2),
        "dq-plain": (64, 32, 8, 2), "dq-primal": (64, 16, 8, 2),
    },
    ("sm_80", 64): {
        "forward-plain": (128, 64, 8, 2), "forward": (128, 32, 8, 2), "forward-many": (128, 32, 8, 2),
        "dkdv-plain": (64, 128, 8, 2), "dkdv-primal": (32, 128, 8, 2),
        "dq-plain": (128, 64, 8, 2), "dq-primal": (128, 32, 8, 2), "dq-joint": (128, 32, 8, 2),
    },
    ("sm_80", 80): {
        "forward-plain": (128, 64, 8, 2), "forward": (128, 32, 8, 2), "forward-many": (128, 32, 8, 2),
        "dkdv-plain": (32, 128, 8, 2), "dkdv-primal": (32, 128, 8, 2),
        "dq-plain": (128, 64, 8, 2), "dq-primal": (128, 32, 8, 2), "dq-joint": (128, 32, 8, 2),
    },
    ("sm_80", 96): {
        "forward-plain": (128, 64, 8, 2), "forward": (128, 32, 8, 2), "forward-many": (128, 32, 8, 2),
        "dkdv-plain": (32, 128, 8, 2), "dkdv-primal": (32, 128, 8, 2),
        "dq-plain": (128, 32, 8, 2), "dq-primal": (128, 32, 8, 2),
    },
    ("sm_80", 128): {
        "forward-plain": (128, 64, 8, 2), "forward": (128, 16, 8, 2), "forward-many": (128, 16, 8, 2),
        "dkdv-plain": (32, 128, 8, 2), "dkdv-primal": (16, 128, 8, 2),
        "dq-plain": (128, 32, 8, 2), "dq-primal": (128, 16, 8, 2),
    },
    ("sm_80", 256): {
        "forward-plain": (64, 32, 8, 2), "forward": (64, 16, 8, 2), "forward-many": (64, 16, 8, 2),
        "dkdv-plain": (16, 64, 8, 2), "dkdv-primal": (16, 32, 8, 2),
        "dq-plain": (64, 16, 8, 2), "dq-primal": (32, 16, 8, 2),
    },
    ("sm_86", 64): {
        "forward-plain": (64, 32, 4, 2), "forward": (64, 32, 4, 1), "forward-many": (64, 32, 4, 1),
        "dkdv-plain": (32, 64, 4, 1), "dkdv-primal": (16, 64, 4, 1),
        "dq-plain": (64, 32, 4, 1), "dq-primal": (64, 16, 4, 1),
    },
    ("sm_86", 80): {
        "forward-plain": (64, 32, 4, 2), "forward": (64, 32, 4, 1), "forward-many": (64, 32, 4, 1),
        "dkdv-plain": (32, 64, 4, 1), "dkdv-primal": (16, 64, 4, 1),
        "dq-plain": (64, 32, 4, 1), "dq-primal": (64, 16, 4, 1),
    },
    ("sm_86", 96): {
        "forward-plain": (64, 32, 4, 2), "forward": (64, 32, 4, 1), "forward-many": (64, 32, 4, 1),
        "dkdv-plain": (32, 64, 4, 1), "dkdv-primal": (16, 64, 4, 1),
        "dq-plain": (64, 32, 4, 1), "dq-primal": (64, 16, 4, 1),
    },
    ("sm_86", 128): {
        "forward-plain": (64, 32, 4, 2), "forward": (64, 32, 4, 1), "forward-many": (64, 32, 4, 1),
        "dkdv-plain": (32, 64, 4, 1), "dkdv-primal": (16, 64, 4, 1),
        "dq-plain": (64, 32, 4, 1), "dq-primal": (64, 16, 4, 1),
    },
    ("sm_86", 256): {
        "forward-plain": (32, 32, 4, 1), "forward": (32, 16, 4, 1), "forward-many": (32, 16, 4, 1),
        "dkdv-plain": (16, 32, 4, 1), "dkdv-primal": (16, 16, 4, 1),
        "dq-plain": (32, 16, 4, 1), "dq-primal": (16, 16, 4, 1),
    },
    ("gfx942", 64): {
        "forward-plain": (128, 64, 4, 1), "forward": (128, 32, 8, 1), "forward-many": (128, 32, 8, 1),
        "dkdv-plain": (32, 64, 4, 1), "dkdv-primal": (16, 64, 4, 1),
        "dq-plain": (64, 32, 4, 1), "dq-primal": (64, 16, 4, 1),
    },
    ("gfx942", 80): {
        "forward-plain": (128, 64, 4, 1), "forward": (128, 32, 8, 1), "forward-many": (128, 32, 8, 1),
        "dkdv-plain": (32, 64, 4, 1), "dkdv-primal": (16, 64, 4, 1),
        "dq-plain": (64, 32, 4, 1), "dq-primal": (64, 16, 4, 1),
    },
    ("gfx942", 96): {
        "forward-plain": (128, 64, 4, 1), "forward": (128, 32, 8, 1), "forward-many": (128, 32, 8, 1),
        "dkdv-plain": (32, 64, 4, 1), "dkdv-primal": (16, 64, 4, 1),
        "dq-plain": (64, 32, 4, 1), "dq-primal": (64, 16, 4, 1),
    },
    ("gfx942", 128): {
        "forward-plain": (128, 64, 4, 1), "forward": (128, 32, 8, 1), "forward-many": (128, 32, 8, 1),
        "dkdv-plain": (32, 64, 4, 1), "dkdv-primal": (16, 64, 4, 1),
        "dq-plain": (64, 32, 4, 1), "dq-primal": (64, 16, 4, 1),
    },
    ("gfx942", 256): {
        "forward-plain": (64, 32, 4, 1), "forward": (64, 16, 4, 1), "forward-many": (64, 16, 4, 1),
        "dkdv-plain": (16, 32, 4, 1), "dkdv-primal": (16, 32, 4, 1),
        "dq-plain": (32, 16, 4, 1), "dq-primal": (32, 16, 4, 1),
    },
    ("fp32", 64): {
        "forward-plain": (32, 32, 4, 1), "forward": (32, 32, 4, 1), "forward-many": (32, 32, 4, 1),
        "dkdv-plain": (32, 32, 4, 1), "dkdv-primal": (16, 32, 4, 1),
        "dq-plain": (32, 32, 4, 1), "dq-primal": (32, 16, 4, 1),
    },
    ("fp32", 80): {
        "forward-plain": (64, 16, 8, 1), "forward": (32, 16, 4, 1), "forward-many": (32, 16, 4, 1),
        "dkdv-plain": (16, 32, 4, 1), "dkdv-primal": (16, 16, 1, 1),
        "dq-plain": (32, 16, 4, 1), "dq-primal": (16, 16, 1, 1),
    },
    ("fp32", 96): {
        "forward-plain": (64, 16, 8, 1), "forward": (16, 16, 4, 1), "forward-many": (16, 16, 4, 1),
        "dkdv-plain": (16, 32, 4, 1), "dkdv-primal": (16, 16, 4, 1),
        "dq-plain": (32, 16, 4, 1), "dq-primal": (16, 16, 4, 1),
    },
    ("fp32", 128): {
        "forward-plain": (32, 16, 4, 1), "forward": (16, 16, 4, 1), "forward-many": (16, 16, 4, 1),
        "dkdv-plain": (16, 32, 4, 1), "dkdv-primal": (16, 16, 4, 1),
        "dq-plain": (32, 16, 4, 1), "dq-primal": (16, 16, 4, 1),
    },
    ("fp32", 256): {
        "forward-plain": (16, 16, 4, 1), "forward": (16, 16, 4, 1), "forward-many": (16, 16, 4, 1),
        "dkdv-plain": (16, 16, 4, 1), "dkdv-primal": (16, 16, 4, 1),
        "dq-plain": (16, 16, 4, 1), "dq-primal": (16, 16, 4, 1),
    },
}  # fmt: skip

# The rows whose tiles, beside those of an additive mask, which Triton buffers at each stage, do not fit shared memory
# (float32) or spill (16 bits).
_MASK_TABLE: dict[tuple[str, int], dict[str, tuple[int, ...]]] = {
    ("sm_90", 64): {"forward-plain": (128, 64, 8, 2)},
    ("sm_90", 80): {"forward-plain": (128, 64, 8, 2), "dq-primal": (128, 32, 8, 2)},
    ("sm_90", 96): {"forward-plain": (128, 64, 8, 2), "forward": (128, 32, 8, 2)},
    ("sm_90", 128): {"dq-primal": (128, 32, 8, 2), "dq-joint": (128, 32, 8, 2)},
    ("sm_90", 256): {"dq-plain": (128, 32, 8, 2), "dq-primal": (64, 16, 4, 2)},
    ("sm_100", 128): {"dq-primal": (64, 32, 4, 2)},
}

Configs = dict[tuple[str, int, str], Config]


def _by_direction(table: dict[tuple[str, int], dict[str, tuple[int, ...]]]) -> Configs:
    return {(*key, direction): Config(*row) for key, rows in table.items() for direction, row in rows.items()}


CONFIGS = _by_direction(_TABLE)
MASK_CONFIGS = _by_direction(_MASK_TABLE)

_INTERPRETER = Config(32, 32, 4, 1, 2)


def config_for(x: Tensor, width: int, direction: str) -> Config | None:
    """Return the row for x's device and dtype; None if there is no joint row. width: max(head dim, value dim)."""
    return _INTERPRETER if x.device.type == "cpu" else row(arch_of(x.device), x.dtype, width, direction)


def config_beside(mask: Tensor | None, x: Tensor, width: int, direction: str) -> Config | None:
    """Return the row that replaces that of :func:`config_for` beside this mask, if there is one."""
    if mask is None or x.device.type == "cpu":
        return None
    return row_beside(mask.dtype, arch_of(x.device), x.dtype, width, direction)


def row(arch: str, dtype: torch.dtype, width: int, direction: str) -> Config | None:
    """Return a row of the table. float32 has its own, the same everywhere: TF32x3 holds every operand twice."""
    return CONFIGS.get(_key(arch, dtype, width, direction))


def row_beside(
    mask_dtype: torch.dtype, arch: str, dtype: torch.dtype, width: int, direction: str
) -> Config | None:  # fmt: skip
    """Return the row that replaces that of :func:`row` beside a mask of this dtype, if there is one."""
    return MASK_CONFIGS.get(_key(arch, dtype, width, direction)) if mask_dtype.is_floating_point else None


def _key(arch: str, dtype: torch.dtype, width: int, direction: str) -> tuple[str, int, str]:
    return "fp32" if dtype == torch.float32 else arch, next(w for w in WIDTHS if width <= w), direction


def max_head_dim(arch: str, dtype: torch.dtype) -> int:
    """Return the largest head dim whose smallest tile fits shared memory."""
    return 128 if arch == "sm_86" and dtype == torch.float32 else WIDTHS[-1]


@functools.cache
def arch_of(device: torch.device) -> str:
    if torch.version.hip is not None:
        return "gfx942"
    major, minor = torch.cuda.get_device_capability(device)
    if (major, minor) in ((8, 6), (8, 9)) or major >= 12:  # 99 KB of shared memory per block
        return "sm_86"
    return {8: "sm_80", 9: "sm_90"}.get(major, "sm_100")
