"""The attention kernels by direction: which launcher reaches each, and launches with a chosen configuration."""

from contextlib import AbstractContextManager
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.harness.checks import Setting
from bench.harness.subjects import Subject, attention_backward, attention_forward
from fastflow.kernels.attention import backward, config, forward
from fastflow.kernels.attention.config import Config


def subject_of(setting: Setting, direction: str, width: int, dtype: torch.dtype, **fields: Any) -> Subject:
    """Return the attention launcher that launches the kernel of a direction. fields: of ``problems.Problem``."""
    side, _, mode = direction.partition("-")
    if side == "forward":
        kind = {"plain": {"tangents": ""}, "": {}, "many": {"K": 3}}[mode]
        return attention_forward(setting, dtype, width=width, **(kind | fields))
    kind = {"h": False} if mode == "plain" else {}
    return attention_backward(setting, dtype, width=width, **(kind | fields))


def forced(direction: str, chosen: Config) -> AbstractContextManager[object]:
    """Launch a direction with the chosen configuration, and no joint kernel that would replace it."""
    side, _, mode = direction.partition("-")

    def config_for(x: Tensor, width: int, name: str) -> Config | None:
        if name == direction:
            return chosen
        if name == f"{side}-joint" and mode == "primal":
            return None
        return config.config_for(x, width, name)

    return mock.patch.object(module_of(direction), "config_for", config_for)


def module_of(direction: str) -> ModuleType:
    return forward if direction.startswith("forward") else backward


def architecture(device: torch.device) -> str:
    """Return the architecture whose rows of the tuning table apply; the interpreter takes those of sm_90."""
    return "sm_90" if device.type == "cpu" else config.arch_of(device)
