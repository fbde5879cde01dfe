"""The verdict on one random call."""

import traceback
import zlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.modes import MODES

from .attention import draw_attention
from .call import Call, problem, restricted, widened
from .divergence import draw_divergence
from .draw import Draw
from .flow_step import draw_flow_step
from .replaced import draw_replaced
from .sampling import draw_conversion, draw_solve

OPS: dict[str, Callable[[Draw, str], Call]] = {
    "attention": draw_attention,
    "flow_step": draw_flow_step,
    "divergence": draw_divergence,
    "solve": draw_solve,
    "conversion": draw_conversion,
    "replaced": draw_replaced,
}
FACTOR = 4.0  # times PyTorch's own error in the same dtype, and in addition, of the largest element:
FLOOR = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def fault(op: str, seed: int, index: int, backend: str = "auto") -> str | None:
    """Make one random call and return a description of what is wrong with it, or None."""
    draw = Draw(zlib.crc32(op.encode()), seed, index)
    call = OPS[op](draw, backend)
    active = draw.some(range(len(call.x)))
    mode = draw.one(call.modes)
    p = problem(draw, call, active)
    where = f"{op} {seed} {index}: {mode} in {active} of {call.name}"
    try:
        baseline = _leaves(MODES[mode](restricted(call.plain, call.x, active), p))
    except (RuntimeError, AttributeError):  # nothing depends on the active arguments, or PyTorch refuses their layout
        return None
    truth = _leaves(MODES[mode](restricted(call.plain, [x.double() for x in call.x], active), widened(p)))
    try:
        actual = _leaves(MODES[mode](restricted(call.op, call.x, active), p))
    except Exception:
        return f"{where}\n{traceback.format_exc(limit=-3)}"
    floor = max(FLOOR[x.dtype] for x in call.x)
    for i, (a, b, t) in enumerate(zip(actual, baseline, truth, strict=True)):
        difference = _difference(a, b, t, floor)
        if difference is not None:
            return f"{where}\nresult {i}: {difference}"
    return None


def _difference(actual: Tensor | None, baseline: Tensor | None, truth: Tensor | None, floor: float) -> str | None:
    given = [x for x in (actual, baseline, truth) if x is not None]
    if not given:
        return None
    # a missing tangent is zero
    a, b, t = (torch.zeros_like(given[0]) if x is None else x.detach() for x in (actual, baseline, truth))
    if actual is not None and baseline is not None and a.dtype != b.dtype:
        return f"dtype {a.dtype}, PyTorch's {b.dtype}"
    if not b.isfinite().all():  # beyond the range of the dtype
        return None
    size = t.abs().max().item() if t.numel() else 0.0
    error = (a.double() - t).abs().max().item() if a.shape == t.shape and t.numel() else 0.0
    theirs = (b.double() - t).abs().max().item() if t.numel() else 0.0
    if a.shape == t.shape and error <= FACTOR * theirs + floor * max(size, 0.3):
        return None
    return f"shape {tuple(a.shape)}, error {error}, PyTorch's {theirs}, size {size:.3g}"


def _leaves(tree: Any) -> list[Tensor | None]:
    """Return the tensors of nested tuples and lists, with None for a missing tangent."""
    return [leaf for branch in tree for leaf in _leaves(branch)] if isinstance(tree, (tuple, list)) else [tree]
