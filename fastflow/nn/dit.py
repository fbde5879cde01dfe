"""The diffusion Transformer (DiT; Peebles and Xie, 2212.09748) as a velocity field in continuous time."""

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from .._checks import check_choice
from ..ops.activation import silu
from ..ops.attention.api import attention
from .activation import GELU, SwiGLU
from .embeddings import RotaryEmbedding, TimeEmbedding, add, position_embedding
from .linear import initialized_linear as linear
from .norm import Branch, NormKind, RMSNorm, add_and_normalize

MLPKind = Literal["gelu", "swiglu"]

PRESETS = {
    "S": {"hidden_size": 384, "depth": 12, "num_heads": 6},
    "B": {"hidden_size": 768, "depth": 12, "num_heads": 12},
    "L": {"hidden_size": 1024, "depth": 24, "num_heads": 16},
    "XL": {"hidden_size": 1152, "depth": 28, "num_heads": 16},
}
PATCH_SIZES = (2, 4, 8)


class DiT(nn.Module):
    """Velocity ``v(x, t, y)`` by a Transformer over patches, conditioned through adaptive layer norm (adaLN-zero).

    Each block computes ``x + g1 · Attn(LN(x)(1 + a1) + b1)`` and then ``x + g2 · MLP(LN(x)(1 + a2) + b2)``, where
    ``a, b, g`` are linear in the embedding of time and label. These layers and the last one are initialised to zero, so
    an untrained model returns exactly zero. Without dropout, the model is a pure function of its input and parameters.
    It works under ``torch.func`` (``jvp``, ``grad``, ``vmap`` over tangents) and ``torch.compile(fullgraph=True)``.

    The defaults are the paper's block. ``norm="rms"`` and ``qk_norm=True`` are the norms of TVM (2511.19797);
    LightningDiT (2501.01423) adds ``rope=True`` and ``mlp="swiglu"``.

    Args:
        input_size: height and width of the input; an int means a square.
        patch_size: side of a patch, a divisor of both.
        in_channels: channels of the input and of the velocity.
        hidden_size: width D of the Transformer, a multiple of 4 and of num_heads.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: width of a block's MLP divided by D; that of ``mlp="swiglu"``, which has three matrices in place of
            two, is 2/3 of it rounded to a multiple of 8, so that the number of parameters stays nearly the same.
        num_classes: labels are 0 ... num_classes - 1; 0 for a model without labels.
        class_dropout: fraction of labels that the training loop replaces by the null class ``num_classes``. The model
            itself drops nothing; a positive value adds a row for the null class to the label table.
        qk_norm: apply RMS norm with a weight to queries and keys in each head.
        norm: ``"layer"``, or ``"rms"`` for RMS norm in its place, both modulated and without weights of their own.
        rope: rotate queries and keys by the row and column of their patch, after qk_norm. As in LightningDiT, the
            positions that are added to the patches remain.
        mlp: ``"gelu"``, or ``"swiglu"`` for ``W2 (silu(W1 x) ∘ V x)``.

    Raises:
        ValueError: patch_size does not divide input_size, num_heads or 4 does not divide hidden_size, class_dropout
            is outside [0, 1), norm or mlp is unknown, or rope is set and 4 does not divide hidden_size / num_heads.
    """

    def __init__(
        self,
        input_size: int | tuple[int, int],
        patch_size: int,
        in_channels: int,
        hidden_size: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        num_classes: int = 0,
        class_dropout: float = 0.1,
        qk_norm: bool = False,
        norm: NormKind = "layer",
        rope: bool = False,
        mlp: MLPKind = "gelu",
    ) -> None:
        super().__init__()
        height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
        if height % patch_size or width % patch_size:
            raise ValueError(f"patch_size must divide input_size {(height, width)}, got {patch_size}")
        if hidden_size % num_heads:
            raise ValueError(f"num_heads must divide hidden_size {hidden_size}, got {num_heads}")
        if not 0.0 <= class_dropout < 1.0:
            raise ValueError(f"class_dropout must be in [0, 1), got {class_dropout}")
        check_choice("norm", norm, NormKind)
        check_choice("mlp", mlp, MLPKind)
        if rope and (head_dim := hidden_size // num_heads) % 4:
            raise ValueError(
                f"rope needs a head dim hidden_size / num_heads that is a multiple of 4, "
                f"got {hidden_size} / {num_heads} = {head_dim}"
            )
        self.input_shape = (in_channels, height, width)
        self.patch_size = patch_size
        self.num_classes = num_classes
        self.class_dropout = class_dropout

        patch_dim = in_channels * patch_size**2
        grid = (height // patch_size, width // patch_size)
        self.patch_embedding = linear(patch_dim, hidden_size)
        self.register_buffer("positions", position_embedding(hidden_size, *grid), persistent=False)
        self.time_embedding = TimeEmbedding(hidden_size)
        if num_classes:
            # unit variance: with the paper's std of 0.02, a small model ignores its labels for hundreds of steps
            self.label_embedding = nn.Embedding(num_classes + (class_dropout > 0), hidden_size)
        rotary = RotaryEmbedding(grid, hidden_size // num_heads) if rope else None  # one for all blocks
        self.blocks = nn.ModuleList(
            DiTBlock(hidden_size, num_heads, mlp_ratio, qk_norm, norm, rotary, mlp) for _ in range(depth)
        )
        self.final_layer = FinalLayer(hidden_size, patch_dim, norm)

    @classmethod
    def preset(cls, name: str, input_size: int = 32, in_channels: int = 4, **kwargs: Any) -> "DiT":
        """Build one of the paper's models by name: ``"S/2"``, ``"B/4"``, ``"XL/2"`` ...

        Args:
            name: S, B, L or XL, a slash, and the patch size 2, 4 or 8.
            input_size: as in the constructor; the default suits the latent of a 256 × 256 image.
            in_channels: as in the constructor.
            kwargs: other arguments of the constructor.

        Raises:
            ValueError: an unknown name.
        """
        size, _, patch = name.partition("/")
        if size not in PRESETS or patch not in map(str, PATCH_SIZES):
            raise ValueError(
                f"name must be one of {', '.join(PRESETS)} with /{', /'.join(map(str, PATCH_SIZES))}, got {name!r}"
            )
        return cls(input_size, int(patch), in_channels, **{**PRESETS[size], **kwargs})

    @property
    def null_class(self) -> int | None:
        """The label that means "no label", or None if the model has none."""
        return self.num_classes if self.num_classes and self.class_dropout > 0 else None

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Return the velocity at ``(x, t)`` given labels y.

        Args:
            x: ``[B, C, H, W]``.
            t: ``[B]`` or a scalar tensor, in [0, 1].
            y: int64 ``[B]`` or None for the null class.

        Returns:
            ``[B, C, H, W]``.

        Raises:
            ValueError: a shape is wrong, y is given but the model has no labels, or y is missing and there is no null
                class.
        """
        if x.shape[1:] != self.input_shape:
            raise ValueError(f"x must be [B, {', '.join(map(str, self.input_shape))}], got shape {tuple(x.shape)}")
        if t.ndim > 1 or t.shape not in ((), x.shape[:1]):
            raise ValueError(f"t must be a scalar or [{x.shape[0]}], got shape {tuple(t.shape)}")
        p, (_, height, _) = self.patch_size, self.input_shape
        patches = rearrange(x, "b c (h p) (w q) -> b (h w) (p q c)", p=p, q=p)
        tokens = add(self.patch_embedding(patches), self.positions.to(x.dtype))  # [B, N, D]
        condition = self.time_embedding(t.expand(x.shape[0]))
        if (labels := self._labels(x, y)) is not None:
            condition = add(condition, self.label_embedding(labels))
        condition, branch = silu(condition), None
        for block in self.blocks:
            tokens, branch = block(tokens, branch, condition)
        out = self.final_layer(tokens, branch, condition)
        return rearrange(out, "b (h w) (p q c) -> b c (h p) (w q)", h=height // p, p=p, q=p)

    def _labels(self, x: Tensor, y: Tensor | None) -> Tensor | None:
        if y is not None:
            if not self.num_classes:
                raise ValueError("y was given, but the model has no classes (num_classes=0)")
            if y.shape != x.shape[:1]:
                raise ValueError(f"y must be [{x.shape[0]}], got shape {tuple(y.shape)}")
            return y
        if not self.num_classes:
            return None
        if self.null_class is None:
            raise ValueError("y is required: the model has no null class (class_dropout=0)")
        return torch.full(x.shape[:1], self.null_class, device=x.device)


class DiTBlock(nn.Module):
    """A pre-norm Transformer block with adaLN-zero, from its first norm up to, but not with, the next block's.

    The MLP's branch is returned as it is: the norm that follows adds it, in one pass over the tokens.
    """

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_ratio: float,
        qk_norm: bool,
        norm: NormKind,
        rotary: RotaryEmbedding | None,
        mlp: MLPKind,
    ) -> None:
        super().__init__()
        self.norm = norm
        self.attention = SelfAttention(hidden_size, num_heads, qk_norm, rotary)
        self.mlp = swiglu_mlp(hidden_size, mlp_ratio) if mlp == "swiglu" else gelu_mlp(hidden_size, mlp_ratio)
        self.modulation = modulation(hidden_size, 6)

    def forward(self, x: Tensor, branch: Branch | None, condition: Tensor) -> tuple[Tensor, Branch]:
        """Add the branch of the block before, then attention; return the sum and the MLP's branch.

        Args:
            x: ``[B, N, D]``.
            branch: None for the first block.
            condition: ``[B, D]``, after its SiLU.
        """
        b1, a1, g1, b2, a2, g2 = self.modulation(condition)[:, None].chunk(6, dim=-1)  # each [B, 1, D]
        x, normed = add_and_normalize(self.norm, x, branch, b1, a1)
        x, normed = add_and_normalize(self.norm, x, Branch(g1, self.attention(normed)), b2, a2)
        return x, Branch(g2, self.mlp(normed))


class SelfAttention(nn.Module):
    """Multi-head self-attention with fastflow's attention op."""

    def __init__(self, hidden_size: int, num_heads: int, qk_norm: bool, rotary: RotaryEmbedding | None) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = linear(hidden_size, 3 * hidden_size)
        self.q_norm = RMSNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(hidden_size // num_heads) if qk_norm else nn.Identity()
        self.rotary = nn.Identity() if rotary is None else rotary
        self.projection = linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x ``[B, N, D]`` to ``[B, N, D]``."""
        query, key, value = (rearrange(y, "b n (h d) -> b h n d", h=self.num_heads) for y in self.qkv(x).chunk(3, -1))
        out = attention(self.rotary(self.q_norm(query)), self.rotary(self.k_norm(key)), value)
        return self.projection(rearrange(out, "b h n d -> b n (h d)"))


class FinalLayer(nn.Module):
    """Adaptive norm, then the projection of each token to its patch."""

    def __init__(self, hidden_size: int, patch_dim: int, norm: NormKind) -> None:
        super().__init__()
        self.norm = norm
        self.modulation = modulation(hidden_size, 2)
        self.linear = linear(hidden_size, patch_dim, zero=True)

    def forward(self, x: Tensor, branch: Branch | None, condition: Tensor) -> Tensor:
        """Map x ``[B, N, D]``, the last block's branch and condition ``[B, D]`` to ``[B, N, patch_dim]``."""
        b, a = self.modulation(condition)[:, None].chunk(2, dim=-1)
        _, normed = add_and_normalize(self.norm, x, branch, b, a)
        return self.linear(normed)


def modulation(hidden_size: int, num: int) -> nn.Sequential:
    """Return the layer that gives shifts, scales and gates; the DiT applies its SiLU once for all blocks."""
    return nn.Sequential(nn.Identity(), linear(hidden_size, num * hidden_size, zero=True))  # keys as with a SiLU


def gelu_mlp(hidden_size: int, mlp_ratio: float) -> nn.Sequential:
    inner = int(hidden_size * mlp_ratio)
    return nn.Sequential(linear(hidden_size, inner), GELU("tanh"), linear(inner, hidden_size))


def swiglu_mlp(hidden_size: int, mlp_ratio: float) -> nn.Sequential:
    inner = max(8, 8 * round(hidden_size * mlp_ratio / 12))
    return nn.Sequential(linear(hidden_size, 2 * inner), SwiGLU(), linear(inner, hidden_size))
