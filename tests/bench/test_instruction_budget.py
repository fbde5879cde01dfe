"""The instruction budget: what is read from machine code, what the model makes of it, and the committed table."""

from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from bench.compiler import budget as model
from bench.compiler import budget_table
from bench.compiler import report as compile_report
from bench.compiler import sass as machine_code
from bench.harness import rows as results
from bench.harness.roofline import kernel_gemms
from fastflow.kernels.attention.config import DIRECTIONS

REFRESH = "python -m bench.compiler.budget_table"
PADDED = {64: 64, 72: 80, 96: 96, 128: 128, 256: 256}


def sass(*lines):
    """A disassembly as cuobjdump prints it, an instruction every 16 bytes."""
    code = [f"        /*{16 * i:04x}*/  {line} ;   /* 0x00 */\n   /* 0x01 */" for i, line in enumerate(lines)]
    return "\n".join(["\t\tFunction : kernel", '\t.headerflags\t@"EF_CUDA_SM90"', *code])


def instruction(line):
    return machine_code.parse(sass(line))[0]


def case(num_warps=8, **constants):
    return SimpleNamespace(name="forward D 64 bf16", num_warps=num_warps, constants=constants)


@pytest.fixture(scope="module")
def committed():
    return [row for row in compile_report.committed_rows() if "budget" in row]


def test_an_instruction_is_read_with_its_guard():
    x, y = machine_code.parse(sass("@!P0 BRA 0x2a70", "ULDC.64 UR4, c[0x0][0x208]"))
    assert (x.address, x.guard, x.name, x.target) == (0, "@!P0", "BRA", 0x2A70)
    assert (y.address, y.guard, y.opcode, y.operands) == (16, "", "ULDC.64", "UR4, c[0x0][0x208]")


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        ("HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0", 2 * 64 * 128 * 16),
        ("HGMMA.64x16x8.F32.TF32 R24, gdesc[UR8], R24", 2 * 64 * 16 * 8),
        ("HMMA.16816.F32.BF16 R4, R8, R16, R4", 2 * 16 * 8 * 16),
        ("HMMA.1688.F32.TF32 R4, R8, R16, R4", 2 * 16 * 8 * 8),
        ("FFMA R4, R8, R16, R4", 0),
    ],
)
def test_flops_are_those_of_the_shape(line, flops):
    assert instruction(line).flops == flops


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], RZ, !UPT", (64 + 64) * 16 * 2),
        ("HGMMA.64x64x16.F32.BF16 R88, R120, gdesc[UR24].tnspB, R88", 64 * 16 * 2),
        ("HGMMA.64x32x8.F32.TF32 R24, gdesc[UR8], R24", (64 + 32) * 8 * 4),
        ("HMMA.16816.F32.BF16 R4, R8, R16, R4", 0),
    ],
)
def test_wgmma_reads_b_and_maybe_a_from_shared_memory(line, read):
    assert instruction(line).operand_bytes == read


@pytest.mark.parametrize(
    ("line", "moved"),
    [
        ("LDG.E.128 R4, desc[UR4][R2.64]", 512),
        ("LDGSTS.E.BYPASS.128 [R175+0x1000], desc[UR60][R76.64], P6", 512),
        ("STG.E.U16 desc[UR4][R2.64+0x4], R31", 64),
        ("STG.E desc[UR4][R2.64], R31", 128),
        ("LDS.64 R4, [R2]", 256),
        ("LDS.U8 R4, [R2]", 32),
        ("LDSM.16.M88.4 R4, [R2]", 512),
        ("LDSM.16.MT88.2 R4, [R2]", 256),
        ("LDSM.16.M88 R4, [R2]", 128),
        ("STL.128 [R1+0x20], R4", 512),
    ],
)
def test_a_warp_moves_the_width_of_the_access(line, moved):
    assert instruction(line).bytes == moved


def test_loops_are_closed_by_branches_to_what_dominates_them():
    program = machine_code.parse(
        sass(
            "MOV R0, R1",  # 0x00
            "@P1 BRA 0x90",  # 0x10 to the cold block
            "FADD R0, R0, R1",  # 0x20 outer loop
            "FMUL R0, R0, R1",  # 0x30 inner loop
            "@P2 BRA 0x50",  # 0x40 a branch over nothing
            "@P0 BRA 0x30",  # 0x50 closes the inner loop
            "@!P0 BRA.U UP0, 0x20",  # 0x60 closes the outer loop
            "@P3 EXIT",  # 0x70
            "EXIT",  # 0x80
            "FADD R9, R9, R9",  # 0x90 the cold block
            "BRA 0x20",  # 0xa0 backwards, and no loop
            "IADD3 R1, R1, R1, RZ",  # 0xb0 a subroutine
            "@P0 BRA 0xb0",  # 0xc0
            "RET.REL.NODEC R2 0x0",  # 0xd0
            "BRA 0xe0",  # 0xe0 the end of every kernel
        )
    )
    assert [[x.address for x in loop] for loop in machine_code.loops(program)] == [
        [0x30, 0x40, 0x50],
        [0x20, 0x30, 0x40, 0x50, 0x60],
    ]
    assert [x.address for x in machine_code.reachable(program)] == list(range(0, 0xB0, 0x10))


PRODUCT = "HGMMA.64x64x16.F32.BF16 R24, gdesc[UR8], R24"
KERNEL = (
    "MOV R0, R1",
    *("LDG.E.128 R4, desc[UR4][R2.64]", "@P0 BRA 0x10"),  # bytes, no products
    *(PRODUCT, PRODUCT, "FSEL R4, R4, R5, P0", "@P0 BRA 0x30"),  # 0x30: with a mask
    PRODUCT,  # 0x70: a loop over heads
    *(PRODUCT, PRODUCT, "@P0 BRA 0x80"),  # 0x80: the steady state
    *("@P1 BRA 0x70", "EXIT"),
)


@pytest.mark.parametrize(
    ("lines", "part", "addresses"),
    [
        (KERNEL, "loop", [0x80, 0x90, 0xA0]),
        ([line.replace("HGMMA", "MOV") for line in KERNEL], "loop", [0x10, 0x20]),
        (["LDG.E R4, desc[UR4][R2.64]", "EXIT", "BRA 0x20"], "body", [0x0, 0x10]),
    ],
)
def test_the_main_part_has_the_most_work_and_no_mask(lines, part, addresses):
    found, instructions = model.main_part(machine_code.parse(sass(*lines)))
    assert (found, [x.address for x in instructions]) == (part, addresses)


def test_a_warpgroup_issues_one_product_together():
    counts = model.budget(case(num_warps=8, BLOCK_M=128, BLOCK_N=64), sass(*KERNEL), 232, 0)
    assert counts["tensor_flops"] == 2 * (2 * 2 * 64 * 64 * 16)  # two warpgroups
    assert counts["operand_bytes"] == 2 * (2 * (64 + 64) * 16 * 2)
    assert (counts["tensor"], counts["issued"]) == (8 * 2, 8 * 3)
    assert (counts["block_m"], counts["block_n"], counts["tensor_op"]) == (128, 64, "HGMMA 16-bit")

    warps_alone = sass(*(line.replace("HGMMA.64x64x16", "HMMA.16816") for line in KERNEL))
    counts = model.budget(case(num_warps=8), warps_alone, 232, 0)
    assert counts["tensor_flops"] == 8 * (2 * 2 * 16 * 8 * 16)
    assert counts["tensor_op"] == "HMMA 16-bit"


def test_instructions_are_counted_by_class_and_by_what_they_move():
    body = (
        *("MUFU.EX2 R1, R1", "MUFU.RCP R1, R1", "FFMA R1, R1, R1, R1", "@P0 FMNMX R1, R1, R1, PT"),
        *("F2FP.BF16.F32.PACK_AB R1, R1, R1", "IMAD.WIDE.U32 R1, R1, R1, R1", "LOP3.LUT R1, R1, R1, RZ, 0xfc, !PT"),
        *("SHFL.BFLY PT, R1, R1, 0x1, 0x1f", "LDS.U8 R1, [R2]", "LDG.E.U8 R1, desc[UR4][R2.64]"),
        *("LDGSTS.E.BYPASS.128 [R1], desc[UR4][R2.64]", "STL.64 [R1], R2", "BAR.SYNC.DEFER_BLOCKING 0x0", "EXIT"),
    )
    found = model.budget(case(num_warps=2), sass(*body), 40, 0)
    of_class = {name: n // 2 for name, n in found.items() if name in (*model.CLASSES, "other", "issued")}
    assert of_class == dict.fromkeys(model.CLASSES, 1) | {"tensor": 0, "global": 1, "other": 2, "issued": 14}
    moved = [found[f"{space}_bytes"] // 2 for space in ("shared", "global", "local")]
    assert moved == [128 + 512, 32 + 512, 256]  # a narrow access to shared memory takes a cycle as well


@pytest.mark.parametrize(
    ("registers", "shared", "num_warps", "ctas"),
    [
        (128, 0, 8, 2),
        (129, 0, 8, 1),
        (255, 0, 8, 1),
        (33, 0, 4, 12),
        (40, 0, 4, 12),
        (32, 0, 1, 32),
        (16, 0, 8, 8),
        (32, 113 << 10, 4, 2),
        (32, 114 << 10, 4, 1),
        (32, 228 << 10, 4, 0),
    ],
)
def test_ctas_of_an_sm(registers, shared, num_warps, ctas):
    assert model.ctas_per_sm(registers, shared, num_warps) == ctas


def counts(**some):
    zeros = dict.fromkeys((*model.CLASSES, "other", "issued", "tensor_flops", "math_flops"), 0)
    zeros |= dict.fromkeys(("operand_bytes", "shared_bytes", "global_bytes", "local_bytes"), 0)
    return zeros | {"tensor_op": "HGMMA 16-bit", "tensor_flops": 100 * 4096, "math_flops": 90 * 4096} | some


@pytest.mark.parametrize(
    ("some", "bound", "cycles"),
    [
        ({}, "tensor", 100),
        ({"tensor_op": "HGMMA TF32"}, "tensor", 200),
        ({"tensor_op": "HMMA 16-bit"}, "tensor", 100 / 0.63),
        ({"exp2": 50, "other MUFU": 5}, "MUFU", 110),
        ({"FP32": 450, "IMAD": 30}, "FMA", 120),
        ({"IMAD": 240}, "IMAD", 120),
        ({"FP32 compare": 80, "conversion": 80, "integer": 80}, "ALU", 120),
        ({"shared_bytes": 6400, "operand_bytes": 6400, "local_bytes": 1280, "shuffle": 10}, "shared", 120),
        ({"global_bytes": 5120}, "L2", 132),
        ({"issued": 480}, "issue", 120),
    ],
)
def test_the_busiest_pipe_is_the_bound(some, bound, cycles):
    prediction = model.predict(counts(**some))
    roof = 494.7 if "TF32" in some.get("tensor_op", "") else 989.4
    assert prediction.bound == bound
    assert prediction.cycles[bound] == pytest.approx(cycles)
    assert prediction.rate == pytest.approx(989.4 * 90 / cycles, rel=1e-3)
    assert prediction.share == pytest.approx(prediction.rate / roof, rel=1e-3)


def test_without_products_the_bytes_come_from_memory():
    some = {"tensor_op": "", "tensor_flops": 0, "global_bytes": 13868}
    assert model.predict(counts(**some)).rate == pytest.approx(3350)
    assert model.predict(counts(**some)).cycles["HBM"] == pytest.approx(1000, rel=1e-3)
    half = model.predict(counts(**some, integer=4000))
    assert (half.bound, round(half.rate), round(half.share, 2)) == ("ALU", 1675, 0.5)


def test_every_case_of_sm_90_has_a_budget(committed):
    assert [r for r in compile_report.committed_rows() if ("budget" in r) != (r["arch"] == "sm_90")] == []
    products = [r for r in committed if r["mma"]]
    assert {r["budget"]["part"] for r in products} == {"loop"}
    assert {r["family"] for r in committed} == set(compile_report.families())


def test_committed_loops_multiply_what_the_mathematics_multiplies(committed):
    for row in committed:
        budget = row["budget"]
        if not row["mma"]:
            assert budget["math_flops"] == budget["tensor_flops"] == 0
            continue
        direction, _, D, dtype, *_ = row["case"].split()
        asked = budget["math_flops"] * (3 if dtype == "fp32" else 1) * PADDED[int(D)] // int(D)
        rows = budget["block_n" if direction.startswith("dkdv") else "block_m"]
        if rows >= 16 * row["warps"]:
            assert budget["tensor_flops"] == asked, row["case"]
        else:  # two warps may have the same rows of a tile, and multiply the same
            assert budget["tensor_flops"] >= asked, row["case"]


def test_gemms_of_every_direction_are_those_of_the_committed_rows(committed):
    seen = set()
    for row in (row for row in committed if row["family"] == "attention"):
        direction, _, D, *_ = row["case"].split()
        if direction in DIRECTIONS:
            x = row["budget"]
            gemms = kernel_gemms(direction, x.get("tangents", 1))
            assert x["math_flops"] == gemms * 2 * x["block_m"] * x["block_n"] * int(D), row["case"]
            seen.add(direction)
    assert seen == set(DIRECTIONS)


@pytest.mark.parametrize(
    ("name", "constants", "gemms"),
    [
        ("forward-plain D 64 bf16", {"TANGENTS": 0}, 2),
        ("forward D 64 fp32", {"TANGENTS": 1}, 6),
        ("forward-many D 64 bf16", {"TANGENTS": 2}, 10),
        ("dkdv-joint D 64 bf16 causal", {}, 12),
        ("dq-joint D 64 bf16", {}, 9),
        ("row terms D 72 bf16", {}, 0),
        ("gaussian bf16", {}, 0),
    ],
)
def test_flops_of_the_mathematics(name, constants, gemms):
    tile = {"BLOCK_M": 32, "BLOCK_N": 128, "HEAD_DIM": 72}
    assert model.math_flops(SimpleNamespace(name=name, constants=tile | constants)) == gemms * 2 * 32 * 128 * 72


def row():
    budget = counts(block_m=128, block_n=64, part="loop", ctas=1)
    return {"family": "attention", "case": "forward D 64 bf16", "warps": 8, "stages": 3, "budget": budget}


def timed(**changes):
    config = {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 3, "tangents": 1}
    return {
        "op": "attention",
        "implementation": "fastflow kernel",
        "mode": "forward",
        "shape": [1, 24, 4096, 64],
        "dtype": "bfloat16",
        "device": "NVIDIA H100 80GB HBM3",
        "config": config,
        "tflops": 300.0,
    } | changes


@pytest.mark.parametrize(
    "change",
    [
        {"op": "flow step"},
        {"implementation": "fastflow"},
        {"mode": "forward-many"},
        {"shape": [1, 24, 4096, 128]},
        {"dtype": "float32"},
        {"device": "NVIDIA A100-SXM4-80GB"},
        {"config": {"block_m": 128, "block_n": 32, "num_warps": 8, "num_stages": 3}},
        {"config": {"block_m": 128, "block_n": 64, "num_warps": 8, "num_stages": 2}},
        {"config": None},
    ],
)
def test_only_the_same_kernel_on_the_same_chip_is_a_measurement(change):
    other = timed(**change, tflops=900.0)
    assert budget_table.measured(row(), [other]) is None
    assert budget_table.measured(row(), [other, timed()]) == 300.0


def test_many_tangents_are_a_part_of_the_tile():
    many = row() | {"case": "forward-many D 64 bf16", "budget": row()["budget"] | {"tangents": 2}}
    config = timed()["config"]
    rows = [timed(mode="forward-many", config=config | {"tangents": n}, tflops=100.0 * n) for n in (1, 2, 4)]
    assert budget_table.measured(many, rows) == 200.0


def test_the_longest_sequence_counts_and_of_those_the_fastest():
    short, long, slower = timed(shape=[1, 24, 1024, 64], tflops=400.0), timed(), timed(tflops=290.0)
    assert budget_table.measured(row(), [short, slower, long]) == 300.0
    assert budget_table.measured(row() | {"case": "forward D 64 bf16 causal"}, [long]) is None
    assert budget_table.measured(row(), []) is None


def test_a_measurement_stands_beside_its_prediction():
    line = budget_table.report([row() | {"registers": 232, "spills": 0}], [timed()])
    assert "| tensor | 890 | 90% | 300 |" in line


def test_table_shows_the_committed_rows(committed):
    table = budget_table.TABLE.read_text(encoding="utf-8")
    assert table == budget_table.report(committed, results.read()), f"rows changed since the table: run {REFRESH}"
