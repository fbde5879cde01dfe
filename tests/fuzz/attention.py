"""Random attention calls."""

import math

import torch
from torch import Tensor

from fastflow.ops.attention import attention
from tests.compare import math_attention

from .call import Call
from .draw import Draw

DTYPES = [torch.float64, torch.float64, torch.float32, torch.float32, torch.float16, torch.bfloat16]


def draw_attention(draw: Draw, backend: str) -> Call:
    dtype = draw.one([torch.float32, torch.float16] if backend == "triton" else DTYPES)
    lead = draw.one([(), (1,), (2,), (2, 1), (3,)])
    heads_k = draw.integer(1, 3)
    heads = heads_k * draw.one([1, 1, 2])
    if heads != heads_k and draw.chance(0.2):
        heads_k = 1
    num_q, num_k = draw.one([1, 2, 5, 16, 17, 33]), draw.one([1, 3, 16, 19, 40])
    dim = draw.one([1, 3, 4, 8, 16])
    dim_v = draw.one([dim, dim, 1, 5, 8])
    options = {
        "is_causal": draw.chance(0.25),
        "scale": draw.one([None, None, None, 0.3, 1.0, 0.0, -0.5, 2.5]),
        "enable_gqa": heads != heads_k,
    }
    mask = None
    if draw.chance(0.5):
        mask = _mask(draw, (*lead, heads, num_q, num_k), dtype)
    size, mean = draw.one([0.1, 1.0, 1.0, 3.0]), draw.one([0.0, 0.0, 0.0, 2.0])
    q, k, v = (
        draw.strided((size * draw.normal(*lead, h, n, d) + mean).to(dtype))
        for h, n, d in ((heads, num_q, dim), (heads_k, num_k, dim), (heads_k, num_k, dim_v))
    )
    if draw.chance(0.1) and lead == (2,):
        k = k[:1].expand_as(k)
    kind = "no mask" if mask is None else f"mask {tuple(mask.shape)} {mask.dtype}"
    name = f"attention {tuple(q.shape)} {tuple(k.shape)} Dv {dim_v} {dtype} {kind} {options} size {size} mean {mean}"

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        bias = mask.to(q.dtype) if mask is not None and mask.dtype != torch.bool else mask
        if bias is None or not options["is_causal"]:
            return math_attention(q, k, v, bias, **options)
        triangle = torch.ones(num_q, num_k, dtype=torch.bool).tril()
        bias = bias & triangle if bias.dtype == torch.bool else torch.where(triangle, bias, -math.inf)
        return math_attention(q, k, v, bias, **{**options, "is_causal": False})

    return Call(name, lambda q, k, v: attention(q, k, v, mask, **options, backend=backend), plain, [q, k, v])


def _mask(draw: Draw, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    own = [1 if draw.chance(0.4) else n for n in shape[draw.integer(0, len(shape) - 2) :]]
    if draw.chance(0.5):
        mask = draw.normal(*own) > draw.one([-1.0, -0.3, 1.5])
        return draw.strided(mask)
    mask = 2.0 * draw.normal(*own)
    mask = mask.masked_fill(draw.normal(*own) > draw.one([0.5, 1.5, math.inf]), -math.inf)
    lowest = draw.one([None, None, torch.finfo(dtype).min])
    if lowest is not None:
        mask = mask.to(dtype).masked_fill(draw.normal(*own) > 0.3, lowest)
    if draw.chance(0.2):
        mask[..., : draw.integer(1, own[-2] if len(own) > 1 else 1), :] = lowest or -math.inf
    return draw.strided(mask.to(dtype if lowest is not None else draw.one([dtype, dtype, torch.float32])))
