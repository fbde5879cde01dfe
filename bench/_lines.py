"""Which rows the README shows: those of these cases that a device has, slower ones too."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """label: what the README calls the case. op, mode, shape, dtype, baseline, implementation: of the rows.
    reason: given where the baseline is the faster."""

    label: str
    op: str
    mode: str
    shape: tuple[int, ...]
    dtype: str
    baseline: str
    implementation: str = "fastflow"
    reason: str = ""


CALL = "a call takes a fixed time in Python and dispatch, which so little work does not repay"
DRAW = "noise that is a function of the step takes more arithmetic than `torch.randn`"
SUM = "the reference sums a path's terms in fp32, one after another, where `lerp` is one pass in the tensors' own dtype"
FUNCTION = "it draws its probe, and the dot product with it is a differentiable function; the tape is given the probe"
PLAIN, JVP = "forward + backward", "forward + jvp"
MEANFLOW, TVM = "forward + jvp + plain backward", "forward + jvp + joint backward"
FP32, BF16, FP16 = "float32", "bfloat16", "float16"
IMAGES, DIGITS, LATENTS = (256, 4, 32, 32), (128, 1, 8, 8), (64, 4, 32, 32)

LINES = (
    Line("flow step, given noise, fp32", "flow step", "given noise", IMAGES, FP32, "eager", reason=SUM),
    Line("flow step, drawn noise, fp32", "flow step", "drawn noise", IMAGES, FP32, "eager", reason=DRAW),
    Line("flow step, given noise, bf16", "flow step", "given noise", IMAGES, BF16, "eager", reason=SUM),
    Line("flow step, drawn noise, bf16", "flow step", "drawn noise", IMAGES, BF16, "eager", reason=DRAW),
    Line("flow step, drawn noise, bf16", "flow step", "drawn noise", IMAGES, BF16, "compiled", reason=DRAW),
    Line("training step, digits DiT, batch 128", "training step", "digits DiT", DIGITS, FP32, "eager", reason=DRAW),
    Line(
        "training step, digits DiT, TVM's loss",
        "training step",
        "digits DiT, TVM",
        (32, 1, 8, 8),
        FP32,
        "math",
        reason=CALL,
    ),
    Line("training step, DiT-S/2, batch 1", "training step", "DiT-S/2, CFM", (1, 4, 32, 32), FP32, "flash"),
    Line("training step, DiT-S/2, TVM's loss", "training step", "DiT-S/2, TVM", (1, 4, 32, 32), FP32, "math"),
    Line("training step, DiT-B/2, batch 64", "training step", "DiT-B/2, CFM", LATENTS, BF16, "flash"),
    Line("training step, DiT-B/2, MeanFlow's loss", "training step", "DiT-B/2, MeanFlow", LATENTS, BF16, "math"),
    Line("training step, DiT-B/2, TVM's loss", "training step", "DiT-B/2, TVM", LATENTS, BF16, "math"),
    *(
        Line(f"attention, {label}, N {n}", "attention", mode, (2, 6, n, 64), FP32, baseline, reason=CALL)
        for label, mode, lengths, baseline in (
            ("forward + JVP", JVP, (1024, 256), "math"),
            ("forward + JVP + joint backward", TVM, (1024, 256, 64), "math"),
            ("plain forward + backward", PLAIN, (1024, 256, 64), "flash"),
        )
        for n in lengths
    ),
    *(
        Line(f"attention, {label}, D 128, N {n}", "attention", mode, (1, 24, n, 128), BF16, baseline, reason=CALL)
        for label, mode, baseline in (
            ("forward + JVP", JVP, "math"),
            ("forward + JVP + plain backward", MEANFLOW, "math"),
            ("forward + JVP + joint backward", TVM, "math"),
            ("plain forward + backward", PLAIN, "flash"),
        )
        for n in (1024, 4096)
    ),
    Line("attention, forward + JVP + joint backward, D 72, N 256", "attention", TVM, (64, 16, 256, 72), BF16, "math"),
    Line("attention, forward + JVP, D 64, N 2048", "attention", JVP, (2, 12, 2048, 64), FP16, "jvp-flash-attention"),
    Line("divergence, 16 probes, digits DiT", "divergence", "digits DiT, 16 probes", (32, 1, 8, 8), FP32, "16 VJPs"),
    Line("divergence, 16 probes, digits DiT", "divergence", "digits DiT, 16 probes", (32, 1, 8, 8), FP32, "16 JVPs"),
    Line(
        "divergence, 16 probes, digits DiT",
        "divergence",
        "digits DiT, 16 probes",
        (32, 1, 8, 8),
        FP32,
        "16 VJPs, one graph",
    ),
    Line("divergence, exact, digits DiT", "divergence", "digits DiT, exact", (32, 1, 8, 8), FP32, "64 VJPs, one graph"),
    Line("divergence, 16 probes, DiT-B/2", "divergence", "DiT-B/2, 16 probes", (8, 4, 32, 32), BF16, "16 VJPs"),
    Line("mode-seeking guidance, digits DiT", "guidance", "digits DiT", (32, 1, 8, 8), FP32, "tape", reason=FUNCTION),
)
