"""Checkpoints of the DiT from before its blocks were built from fastflow's ops still load, and sample the same."""

import pytest
import torch
from torch import Tensor

import fastflow as ff
from fastflow.nn import DiT
from tests.compare import assert_close

SETTINGS = {"input_size": 8, "patch_size": 2, "in_channels": 3, "hidden_size": 32, "depth": 2, "num_heads": 4}
LINEAR = ("attention.qkv", "attention.projection", "mlp.0", "mlp.2", "modulation.1")
LAYERS = [
    *("patch_embedding", "time_embedding.linear1", "time_embedding.linear2"),
    *(f"blocks.{i}.{name}" for i in range(2) for name in LINEAR),
    *("final_layer.modulation.1", "final_layer.linear"),
]
KEYS = {"label_embedding.weight"} | {f"{layer}.{kind}" for layer in LAYERS for kind in ("weight", "bias")}
QK_KEYS = {f"blocks.{i}.attention.{name}_norm.weight" for i in range(2) for name in "qk"}

# of the model as it was, by qk_norm: four values of the samples, and the norm of all
SAMPLES = {
    False: (1.5962946, 1.0967895, 1.9479995, -0.4013803, 39.9991150),
    True: (-2.3454211, 3.6507723, -1.7893322, 2.8523698, 30.3387661),
}


def numbers(size: int, seed: int) -> Tensor:
    """Scrambled numbers in [-0.5, 0.5), by exact arithmetic: the same everywhere."""
    j = torch.arange(size) + 100_003 * seed
    return ((j * j * 2_654_435_761 + j * 40_503) % 2**32).double() / 2**32 - 0.5


def checkpoint(model: DiT) -> dict[str, Tensor]:
    state = sorted(model.state_dict().items())
    return {k: (0.7 * numbers(x.numel(), i)).reshape(x.shape).to(x.dtype) for i, (k, x) in enumerate(state)}


@pytest.mark.parametrize("qk_norm", [False, True])
def test_earlier_checkpoints_sample_the_same(qk_norm: bool) -> None:
    model = DiT(**SETTINGS, num_classes=3, qk_norm=qk_norm)
    assert set(model.state_dict()) == KEYS | (QK_KEYS if qk_norm else set())
    model.load_state_dict(checkpoint(model), strict=True)
    x0 = 3.0 * numbers(2 * 192, 99).reshape(2, 3, 8, 8).float()
    y = torch.tensor([2, 0])
    with torch.no_grad():
        samples = ff.sample_ode(lambda x, t: model(x, t, y), x0, num_steps=3)
    picked = torch.cat((samples[:, ::2, 3, 5].flatten(), samples.norm()[None]))
    assert_close(picked, torch.tensor(SAMPLES[qk_norm]), 1e-5)
