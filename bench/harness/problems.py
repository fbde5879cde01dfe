"""Attention problems and their oracle: autograd through ``torch.func.jvp`` of math attention."""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Problem:
    """One attention call with its tangents and cotangents.

    tangents: the names among q, k, v that have one. g, h: whether the cotangents of out and t_out are given.
    mask: "", or "bool" or "bias", with "-broadcast" for one row of keys or "-row" for a fully masked query.
    """

    B: int = 1
    Hq: int = 2
    Hk: int = 2
    Nq: int = 17
    Nk: int = 33
    D: int = 16
    Dv: int = 16
    K: int = 1
    tangents: str = "qkv"
    mask: str = ""
    is_causal: bool = False
    scale: float = 0.4
    g: bool = True
    h: bool = True
    layout: str = "contiguous"
    dtype: torch.dtype = torch.float32
    tangent_dtype: torch.dtype | None = None
    device: torch.device | str = "cpu"
    seed: int = 0
    _generator: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self._generator = torch.Generator().manual_seed(self.seed)
        self.q, self.k, self.v = self._primals()
        self.primals = (self.q, self.k, self.v)
        self.ts = tuple(
            self._randn(self.K, *x.shape, dtype=self.tangent_dtype or self.dtype) if name in self.tangents else None
            for name, x in zip("qkv", self.primals)
        )
        self.mask_tensor = self._mask()
        out_shape = (self.B, self.Hq, self.Nq, self.Dv)
        self.G = self._randn(*out_shape, dtype=self.dtype) if self.g else None
        h_dtype = self.tangent_dtype or self.dtype
        self.H = self._randn(self.K, *out_shape, dtype=h_dtype) if self.h and self.tangents else None

    def _randn(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=self._generator).to(self.device, dtype)

    def _primals(self) -> tuple[Tensor, Tensor, Tensor]:
        q_shape, k_shape, v_shape = (
            (self.B, self.Hq, self.Nq, self.D),
            (self.B, self.Hk, self.Nk, self.D),
            (self.B, self.Hk, self.Nk, self.Dv),
        )
        if self.layout == "fused":  # slices of a [B, N, 3, H, D] projection
            qkv = self._randn(self.B, self.Nq, 3, self.Hq, self.D, dtype=self.dtype)
            return qkv.permute(2, 0, 3, 1, 4).unbind()
        q, k, v = (self._randn(*shape, dtype=self.dtype) for shape in (q_shape, k_shape, v_shape))
        if self.layout == "transposed":  # the head dim is not the innermost one
            return tuple(x.mT.contiguous().mT for x in (q, k, v))
        if self.layout == "odd":  # rows contiguous, every other stride odd
            return tuple(torch.cat((x, x[..., :1]), -1)[..., :-1] for x in (q, k, v))
        if self.layout == "expanded":
            return q, k[:, :1, :1].expand(k_shape), v[:, :1].expand(v_shape)
        return q, k, v

    def _mask(self) -> Tensor | None:
        kind, _, where = self.mask.partition("-")
        if not kind:
            return None
        full = (self.B, self.Hq, self.Nq, self.Nk)
        shape = (self.B, 1, 1, self.Nk) if where == "broadcast" else full
        if kind == "bool":
            mask = self._randn(*shape, dtype=torch.float32) > -0.5
            mask[..., 0] = True
            if where == "row":  # query 1 is fully masked, the others of its block are not
                mask[:, :, 1] = False
        else:
            mask = self._randn(*shape, dtype=self.dtype)
            mask[..., -1] = -torch.inf
            if where == "row":
                mask[:, :, 1] = -torch.inf
        return mask.expand(full)

    def arguments(self) -> dict:
        return {"scale": self.scale, "is_causal": self.is_causal}


def oracle(x: Problem, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return ``([out, t_out], [dq, dk, dv, dtq, dtk, dtv])`` computed in dtype; missing tangents count as zero."""
    primals = [p.detach().to(dtype).clone(memory_format=torch.contiguous_format).requires_grad_() for p in x.primals]
    K = x.K if x.tangents else 0
    tangents = [
        (torch.zeros(K, *p.shape, dtype=dtype, device=p.device) if t is None else t.detach().to(dtype)).requires_grad_()
        for p, t in zip(primals, x.ts)
    ]
    mask = x.mask_tensor
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(dtype)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return math_attention(q, k, v, mask, is_causal=x.is_causal, scale=x.scale, enable_gqa=x.Hq != x.Hk)

    out = attend(*primals)
    t_outs = [torch.func.jvp(attend, tuple(primals), tuple(t[i] for t in tangents))[1] for i in range(K)]
    values = [out] + ([torch.stack(t_outs)] if t_outs else [])
    cotangents = [x.G, x.H][: len(values)]
    objective = sum((c.to(dtype) * y).sum() for c, y in zip(cotangents, values) if c is not None)
    leaves = [*primals, *tangents]
    grads = [None] * 6
    if isinstance(objective, Tensor):
        grads = torch.autograd.grad(objective, leaves, allow_unused=True)
    return [y.detach() for y in values], [torch.zeros_like(p) if d is None else d for p, d in zip(leaves, grads)]


def math_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return ``softmax(s Q Kᵀ + bias) V`` computed in the inputs' dtype, zero for fully masked rows.

    It is written out, so that autograd gives every derivative.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(groups, dim=-3) for x in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = scale * query @ key.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
    if attn_mask is None:
        attends = torch.ones_like(scores, dtype=torch.bool)
    elif attn_mask.dtype == torch.bool:
        attends = attn_mask.expand_as(scores)
    else:
        attends = (attn_mask > -torch.inf).expand_as(scores)
        scores = scores + attn_mask.masked_fill(attn_mask == -torch.inf, 0.0)
    scores = scores.masked_fill(~attends, -torch.inf)
    top = scores.detach().amax(-1, keepdim=True).clamp(min=torch.finfo(scores.dtype).min)
    weights = (scores - top).exp()
    total = weights.sum(-1, keepdim=True)
    return weights @ value / torch.where(total == 0, 1.0, total)
