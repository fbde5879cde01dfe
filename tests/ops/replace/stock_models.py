"""Tiny stock models with random weights in float64, unmodified."""

import importlib.util
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastflow.nn import DiT

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@dataclass
class Stock:
    """A model as a function of one tensor, and how to switch its activation checkpointing on."""

    model: nn.Module
    function: Callable[[Tensor], Tensor]
    shape: tuple[int, ...]
    checkpoint: Callable[[bool], Any] | None = None  # use_reentrant

    def __post_init__(self) -> None:
        """Draw the weights everywhere: a zero-initialised gate would hide the attention behind it."""
        generator = torch.Generator().manual_seed(0)
        self.model.double().eval()
        for parameter in self.model.parameters():
            parameter.data = 0.2 * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)


def _torchvision_operators() -> torch.library.Library | None:
    """Define the operators whose fakes torchvision registers, if its C++ part does not load.

    It does not beside a PyTorch of another build (CPU and CUDA, say); then diffusers, transformers and timm, which
    import torchvision where it is installed, fail to import. None of their models here needs an operator of it.
    """
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        return None
    try:
        torch.ops.load_library(Path(spec.origin).parent / "_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        return library
    return None


_OPERATORS = _torchvision_operators()  # kept, because its definitions go with it
TIME, LABEL = torch.tensor([3, 7]), torch.tensor([1, 4])


def _draw(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def _diffusers(name: str, call: Callable[[nn.Module, Tensor], Any], shape: tuple[int, ...], **config: Any) -> Stock:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed")
    model = getattr(diffusers, name)(num_attention_heads=2, attention_head_dim=8, **config)

    def checkpoint(use_reentrant: bool) -> None:
        def run(function: Callable[..., Any], *args: Any) -> Any:
            return torch.utils.checkpoint.checkpoint(function, *args, use_reentrant=use_reentrant)

        model.enable_gradient_checkpointing(run)

    return Stock(model, lambda x: call(model, x).sample, shape, checkpoint)


def _transformers(name: str, call: Callable[[nn.Module, Tensor], Any], shape: tuple[int, ...], **config: Any) -> Stock:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    settings = getattr(transformers, f"{name}Config")(
        hidden_size=16, num_hidden_layers=2, intermediate_size=32, attn_implementation="sdpa", **config
    )
    options = {} if name == "Llama" else {"add_pooling_layer": False}
    model = getattr(transformers, f"{name}Model")(settings, **options)

    def checkpoint(use_reentrant: bool) -> None:
        model.train()
        model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})

    return Stock(model, lambda x: call(model, x).last_hidden_state, shape, checkpoint)


def diffusers_dit() -> Stock:
    return _diffusers(
        "DiTTransformer2DModel", lambda model, x: model(x, timestep=TIME, class_labels=LABEL), (2, 3, 4, 4),
        in_channels=3, num_layers=2, sample_size=4, patch_size=2, num_embeds_ada_norm=10,
    )  # fmt: skip


def diffusers_sd3() -> Stock:
    text, pooled = _draw(2, 3, 6), _draw(2, 5)

    def call(model: nn.Module, x: Tensor) -> Any:
        inputs = {"encoder_hidden_states": text, "pooled_projections": pooled, "timestep": TIME}
        return model(x, **{name: y.to(x.dtype) for name, y in inputs.items()})

    return _diffusers(
        "SD3Transformer2DModel", call, (2, 3, 4, 4),
        sample_size=4, patch_size=2, in_channels=3, out_channels=3, num_layers=2, joint_attention_dim=6,
        caption_projection_dim=16, pooled_projection_dim=5, pos_embed_max_size=4, qk_norm="rms_norm",
    )  # fmt: skip


def diffusers_flux() -> Stock:
    text, pooled, ids = _draw(2, 3, 6), _draw(2, 5), torch.zeros(6, 3, dtype=torch.float64)

    def call(model: nn.Module, x: Tensor) -> Any:
        return model(
            x, encoder_hidden_states=text, pooled_projections=pooled, timestep=TIME / 10.0, img_ids=ids, txt_ids=ids[:3]
        )

    return _diffusers(
        "FluxTransformer2DModel", call, (2, 6, 4),
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, joint_attention_dim=6, pooled_projection_dim=5,
        axes_dims_rope=(2, 2, 4),
    )  # fmt: skip


def diffusers_pixart() -> Stock:
    text, conditions = _draw(2, 3, 6), {"resolution": None, "aspect_ratio": None}

    def call(model: nn.Module, x: Tensor) -> Any:
        return model(x, encoder_hidden_states=text, timestep=TIME, added_cond_kwargs=conditions)

    return _diffusers(
        "PixArtTransformer2DModel", call, (2, 3, 4, 4),
        in_channels=3, out_channels=3, num_layers=2, cross_attention_dim=16, sample_size=4, patch_size=2,
        caption_channels=6, use_additional_conditions=False,
    )  # fmt: skip


def transformers_vit() -> Stock:
    return _transformers(
        "ViT", lambda model, x: model(x), (2, 3, 4, 4), num_attention_heads=2, image_size=4, patch_size=2
    )


def transformers_llama() -> Stock:
    return _transformers(
        "Llama", lambda model, x: model(inputs_embeds=x), (2, 5, 16),
        num_attention_heads=4, num_key_value_heads=2, vocab_size=11, use_cache=False,
    )  # fmt: skip


def transformers_bert() -> Stock:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return _transformers(
        "Bert", lambda model, x: model(inputs_embeds=x, attention_mask=mask), (2, 5, 16),
        num_attention_heads=2, vocab_size=11, max_position_embeddings=8, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip


def timm_vit() -> Stock:
    timm = pytest.importorskip("timm", reason="timm is not installed")
    model = timm.models.vision_transformer.VisionTransformer(
        img_size=4, patch_size=2, embed_dim=16, depth=2, num_heads=2, num_classes=0, global_pool="token"
    )

    def checkpoint(use_reentrant: bool) -> None:
        timm.layers.set_reentrant_ckpt(use_reentrant)
        model.set_grad_checkpointing()

    return Stock(model, model, (2, 3, 4, 4), checkpoint)


def torch_encoder() -> Stock:
    model = nn.TransformerEncoder(
        nn.TransformerEncoderLayer(16, 2, 32, 0.0, batch_first=True), 2, enable_nested_tensor=False
    )
    reentrant: list[bool] = []

    def call(x: Tensor) -> Tensor:
        for layer in model.layers:
            if reentrant:
                x = torch.utils.checkpoint.checkpoint(layer, x, use_reentrant=reentrant[0])
            else:
                x = layer(x)
        return x

    return Stock(model, call, (2, 5, 16), reentrant.append)


def fastflow_dit() -> Stock:
    model = DiT(4, 2, 3, hidden_size=16, depth=2, num_heads=2, num_classes=10, qk_norm=True)
    t = torch.tensor([0.3, 0.7], dtype=torch.float64)
    return Stock(model, lambda x: model(x, t, LABEL), (2, 3, 4, 4))


STOCK: dict[str, Callable[[], Stock]] = {
    "diffusers DiT": diffusers_dit,
    "diffusers SD3": diffusers_sd3,
    "diffusers Flux": diffusers_flux,
    "diffusers PixArt": diffusers_pixart,
    "transformers ViT": transformers_vit,
    "transformers Llama": transformers_llama,
    "transformers BERT": transformers_bert,
    "timm ViT": timm_vit,
    "nn.TransformerEncoder": torch_encoder,
}
