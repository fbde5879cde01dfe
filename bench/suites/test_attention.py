"""Attention with its derivatives against PyTorch's math backend, without tangents against PyTorch's fastest backend.

Modes with tangents of query, key and value, one or several at a time: in "plain backward" the tangent is detached, as
in MeanFlow; in "joint backward" the gradient flows through the tangent too, as in terminal velocity matching (TVM).
The same shape without tangents is measured as a yardstick for flash attention.

On a GPU: the grids of TVM (D = 128), of DiT-XL (D = 72) and of jvp-flash-attention (D = 64, float16, masks).

The truth is math attention in float64, or fastflow's blocked PyTorch code in float64 if the scores do not fit.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import fastflow as ff
from bench.harness import roofline
from bench.harness.case import Case, Entry, Way
from bench.harness.memory import peak_bytes
from bench.harness.rows import dtype_name
from bench.suites.models import DEVICE, math_attention

CUDA = DEVICE.type == "cuda"
FLOAT64_SCORES = 1 << (26 if CUDA else 24)  # the largest float64 score matrix
FORWARD, BACKWARD = "forward", "forward + backward"
JVP, MEANFLOW, TVM = "forward + jvp", "forward + jvp + plain backward", "forward + jvp + joint backward"
MODES = {FORWARD: "none", BACKWARD: "plain", JVP: "none", MEANFLOW: "plain", TVM: "joint"}
YARDSTICKS = {JVP: FORWARD, MEANFLOW: BACKWARD, TVM: BACKWARD}  # the same work without tangents
NAMES = {
    BACKWARD: "forward + backward without tangents",
    JVP: "forward + JVP",
    MEANFLOW: "forward + JVP + backward of the output",
    TVM: "forward + JVP + joint backward",
}
CALL = "each call spends a fixed time in Python and dispatch, which exceeds the gain on so little work"
Attention = Callable[..., Tensor]
Pair = Callable[..., tuple[Tensor, Tensor]]  # query, key, value and their tangents: O and tO


@dataclass(frozen=True)
class Problem:
    mode: str
    shape: tuple[int, int, int, int]
    dtype: torch.dtype = torch.float32
    mask: str = "none"
    tangents: int = 1
    compiled: bool = False

    @property
    def name(self) -> str:
        mask = {"none": "", "causal": "causal"}.get(self.mask, f"{self.mask} mask")
        return ", ".join(filter(None, [self.mode, mask, f"{self.tangents} tangents" * (self.tangents > 1)]))

    @property
    def has_tangents(self) -> bool:
        return "jvp" in self.mode


def entry(p: Problem, cuda: bool = CUDA) -> Entry:
    listed = _listed(p)
    baseline = "math" if p.has_tangents else "flash"
    if p.dtype == torch.float16:
        baseline = "jvp-flash-attention"
    shown = p.mode == TVM and p.shape[2:] == ((4096, 128) if cuda else (1024, 64))
    return Entry(
        op="attention",
        mode=p.name,
        shape=p.shape,
        dtype=p.dtype,
        label=f"attention, {NAMES[p.mode]}, D {p.shape[3]}, N {p.shape[2]}" if listed else "",
        baselines=(baseline,) if listed else (),
        readme=(baseline,) if listed and shown else (),
        reason=CALL if listed else "",
        yardstick=YARDSTICKS.get(p.name, ""),
    )


def _listed(p: Problem) -> bool:
    if p.mode not in NAMES or p.mask != "none" or p.tangents > 1:
        return False
    n = p.shape[2]
    if p.dtype == torch.float32:
        return p.shape == (2, 6, n, 64) and p.mode != MEANFLOW
    if p.dtype == torch.float16:
        return (p.shape, p.mode) == ((2, 12, 2048, 64), JVP)
    return (p.shape == (1, 24, n, 128) and n in (1024, 4096)) or (p.shape, p.mode) == ((64, 16, 256, 72), TVM)


def entries(cuda: bool) -> Iterable[Entry]:
    return (entry(p, cuda) for p in ((*on_gpu(), *rest_on_gpu()) if cuda else on_cpu()))


def on_cpu() -> Iterable[Problem]:
    for n in (64, 256, 1024):
        for mode in (BACKWARD, TVM):
            yield Problem(mode, (2, 6, n, 64))
    for n in (256, 1024):
        for mode in (FORWARD, JVP, MEANFLOW):
            yield Problem(mode, (2, 6, n, 64))
    for mask in ("causal", "bool", "additive"):
        yield Problem(TVM, (2, 6, 256, 64), mask=mask)
    for k in (4, 16):
        yield Problem(JVP, (2, 6, 256, 64), tangents=k)
    yield Problem(TVM, (2, 6, 256, 64), tangents=4)
    yield Problem(TVM, (2, 6, 256, 64), torch.bfloat16)
    yield Problem(TVM, (2, 16, 256, 72), compiled=True)


def on_gpu() -> Iterable[Problem]:
    for n in (128, 256, 512, 1024, 2048, 4096, 8192, 16384):
        for mode in MODES:
            yield Problem(mode, (1, 24, n, 128), torch.bfloat16, compiled=n == 4096 and mode == TVM)
    for n in (256, 1024):
        for mode in MODES:
            yield Problem(mode, (64, 16, n, 72), torch.bfloat16)
    masks = {"none": MODES, "causal": (BACKWARD, JVP, TVM), "bool": (JVP, TVM), "additive": (JVP, TVM)}
    for mask, modes in masks.items():
        for n in (32, 64, 128, 256, 512, 1024, 2048) if mask in ("none", "causal") else (128, 512, 2048):
            for mode in modes:
                yield Problem(mode, (2, 12, n, 64), torch.float16, mask)
    for k in (4, 16):
        for mode in (JVP, TVM):
            yield Problem(mode, (2, 12, 1024, 64), torch.float16, tangents=k)
    yield Problem(JVP, (2, 12, 1024, 64), torch.float32)


def rest_on_gpu() -> Iterable[Problem]:
    """Yield the rest of the grids of ``on_gpu``, and compiled math wherever it can be a baseline."""
    chosen = list(on_gpu())
    for mask in ("none", "causal", "bool", "additive"):
        for n in (32, 64, 128, 256, 512, 1024, 2048):
            grid = (Problem(mode, (2, 12, n, 64), torch.float16, mask) for mode in MODES)
            yield from (p for p in grid if p not in chosen)
    for p in chosen:
        if p.has_tangents and p.tangents == 1 and p.mask == "none" and p.shape[2] >= 256 and not p.compiled:
            yield dataclasses.replace(p, compiled=True)


def half_math_attention(*args: Tensor, **options: object) -> Tensor:
    """Math attention with GEMMs in half precision, which PyTorch's math backend does only on request."""
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    try:
        return math_attention(*args, **options)
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


def flash_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: None, is_causal: bool) -> Tensor:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        return F.scaled_dot_product_attention(query, key, value, is_causal=is_causal)


def jvp_flash_attention(p: Problem) -> tuple[Attention | None, str]:
    """Return the package's attention, or None and why it cannot take part."""
    if not CUDA:
        return None, "needs a GPU"
    if p.mode == TVM:
        return None, "detaches the tangent"
    if p.tangents > 1:
        return None, "takes one tangent"
    if p.mask == "additive":
        return None, "scales an additive mask with the scores"
    try:
        from jvp_flash_attention.jvp_attention import JVPAttn
    except ImportError:
        return None, "not installed"

    def attend(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool) -> Tensor:
        mask = None if attn_mask is None else attn_mask.expand(*query.shape[:2], *attn_mask.shape)
        return JVPAttn.fwd_dual(query, key, value, attn_mask=mask, causal=is_causal, verify_attn_mask=False)

    return attend, ""


@dataclass(frozen=True)
class Inputs:
    """Query, key and value ``[B, H, N, D]``; tangents, ``[K, B, H, N, D]`` if K > 1; cotangents of O and tO; a mask."""

    primals: list[Tensor]
    tangents: list[Tensor]
    grad_out: Tensor
    grad_tangent: Tensor
    mask: Tensor | None
    is_causal: bool

    @staticmethod
    def draw(p: Problem) -> "Inputs":
        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, device=DEVICE).to(p.dtype)

        many, n = ((p.tangents,) if p.tangents > 1 else ()), p.shape[2]
        mask = {"bool": lambda: draw(n, n) > -1, "additive": lambda: draw(n, n)}.get(p.mask, lambda: None)()
        if p.mask == "bool":
            mask.fill_diagonal_(True)
        primals, tangents = [draw(*p.shape) for _ in range(3)], [draw(*many, *p.shape) for _ in range(3)]
        return Inputs(primals, tangents, draw(*p.shape), draw(*many, *p.shape), mask, p.mask == "causal")

    def double(self) -> "Inputs":
        mask = self.mask if self.mask is None or self.mask.dtype == torch.bool else self.mask.double()
        primals, tangents = ([x.double() for x in xs] for xs in (self.primals, self.tangents))
        return Inputs(primals, tangents, self.grad_out.double(), self.grad_tangent.double(), mask, self.is_causal)


def pair(attend: Attention, x: Inputs, tangents: int) -> Pair:
    """Return O and its tangents by ``torch.func.jvp``, with ``vmap`` over several tangents."""
    masked = functools.partial(attend, attn_mask=x.mask, is_causal=x.is_causal)

    def one(q: Tensor, k: Tensor, v: Tensor, *t: Tensor) -> tuple[Tensor, Tensor]:
        return jvp(masked, (q, k, v), t)

    def many(q: Tensor, k: Tensor, v: Tensor, *t: Tensor) -> tuple[Tensor, Tensor]:
        out, t_out = vmap(lambda *t: jvp(masked, (q, k, v), t))(*t)
        return out[0], t_out

    return many if tangents > 1 else one


def run_plain(attend: Attention, x: Inputs, backward: str) -> list[Tensor]:
    primals = x.primals if backward == "none" else _leaves(x.primals)
    out = attend(*primals, attn_mask=x.mask, is_causal=x.is_causal)
    return [out] if backward == "none" else [out, *torch.autograd.grad(out, primals, x.grad_out)]


def run_dual(pair: Pair, x: Inputs, backward: str) -> list[Tensor]:
    if backward == "none":
        return list(pair(*x.primals, *x.tangents))
    primals = _leaves(x.primals)
    if backward == "plain":
        out, t_out = pair(*primals, *x.tangents)
        return [out, t_out.detach(), *torch.autograd.grad(out, primals, x.grad_out)]
    leaves = [*primals, *_leaves(x.tangents)]
    outs = pair(*leaves)
    return [*outs, *torch.autograd.grad(outs, leaves, (x.grad_out, x.grad_tangent))]


def attention_case(p: Problem) -> Case:
    x, backward = Inputs.draw(p), MODES[p.mode]
    attends, skipped = contenders(p)

    def work(attend: Attention, x: Inputs, compiled: bool = False) -> Callable[[], list[Tensor]]:
        if not p.has_tangents:
            return functools.partial(run_plain, attend, x, backward)
        both = pair(attend, x, p.tangents)
        return functools.partial(run_dual, torch.compile(both, dynamic=False) if compiled else both, x, backward)

    def truth() -> list[Tensor]:
        b, h, n, _ = p.shape
        fits = b * h * n * n * (1 + p.tangents) <= 2 * FLOAT64_SCORES
        return work(math_attention if fits else functools.partial(ff.attention, backend="reference"), x.double())()

    half = p.dtype != torch.float32
    return Case(
        entry(p),
        ways={name: Way(work(attend, x, name.endswith("compiled"))) for name, attend in attends.items()},
        truth=truth,
        budget=4 * torch.finfo(p.dtype).eps if half else 1e-5,
        factor=(2 if p.mode == FORWARD else 3) if half else math.inf,
        floor=roofline.attention(
            p.shape,
            p.dtype,
            tangents=p.tangents if p.has_tangents else 0,
            backward=backward,
            is_causal=x.is_causal,
            mask_bytes=0 if x.mask is None else x.mask.nbytes,
        ),
        note="float32 GEMMs are split into three TF32 GEMMs" if CUDA and not half else "",
        skipped=skipped,
        least_rounds=5 if CUDA else 10,  # page faults make math's times vary
    )


def contenders(p: Problem) -> tuple[dict[str, Attention], dict[str, str]]:
    """Return the implementations, the baseline first, and those that cannot take part with the reason."""
    if not p.has_tangents:
        flash = not CUDA or (p.mask in ("none", "causal") and p.dtype != torch.float32)
        theirs = {"flash": flash_attention if CUDA else F.scaled_dot_product_attention} if flash else {}
        if CUDA:
            theirs["sdpa"] = F.scaled_dot_product_attention  # the backend that PyTorch selects
        return {**theirs, "fastflow": ff.attention}, {}
    theirs, why_not = jvp_flash_attention(p)
    ways = {
        "math": math_attention,
        **({"math half": half_math_attention} if p.dtype == torch.bfloat16 else {}),
        **({"math compiled": math_attention} if p.compiled else {}),
        **({} if theirs is None else {"jvp-flash-attention": theirs}),
        "fastflow": ff.attention,
    }
    return ways, {"jvp-flash-attention": why_not} if theirs is None else {}


def _leaves(tensors: list[Tensor]) -> list[Tensor]:
    return [y.detach().requires_grad_() for y in tensors]


def _id(p: Problem) -> str:
    return f"{p.name} {list(p.shape)} {dtype_name(p.dtype)}"


GRID = [*on_gpu(), *(pytest.param(p, marks=pytest.mark.full) for p in rest_on_gpu())] if CUDA else [*on_cpu()]


@pytest.mark.parametrize("problem", GRID, ids=_id)
def test_attention(record, problem):
    torch.manual_seed(0)
    record(attention_case(problem))


@pytest.mark.parametrize("mode", [JVP, MEANFLOW, TVM])
def test_peak_memory_is_at_most_a_quarter_of_maths(mode):
    torch.manual_seed(0)
    problem = Problem(mode, (1, 24, 4096, 128), torch.bfloat16) if CUDA else Problem(mode, (2, 6, 1024, 64))
    ways = attention_case(problem).ways
    assert peak_bytes(ways["fastflow"].call) <= peak_bytes(ways["math"].call) / 4
