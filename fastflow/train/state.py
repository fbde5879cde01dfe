"""The state of a training run, and its conversion to a checkpoint and back."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .checkpoint import Checkpoint
from .config import Config
from .data import DataSpec
from .ema import EMA
from .errors import DamagedCheckpointError
from .runs import Model, build_model, describe


@dataclass
class State:
    """Everything that training changes. ``step``: number of completed steps; ``seconds``: time spent on them."""

    model: Model
    ema: EMA[Model]
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    @classmethod
    def initial(cls, config: Config, spec: DataSpec, device: torch.device) -> "State":
        """Return the state before the first step, a function of the configuration alone."""
        model = build_model(config, spec).to(device)
        optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, (0.9, config.beta2), weight_decay=config.weight_decay, fused=True
        )
        return cls(model, EMA(model, config.ema_decay), optimizer)

    def to_checkpoint(self, config: Config, spec: DataSpec) -> Checkpoint:
        """Return a checkpoint with all that is needed to continue exactly, and to sample."""
        tensors = {
            "model": self.model.state_dict(),
            "ema": self.ema.model.state_dict(),
            "optimizer": self._optimizer_tensors(),
        }
        return Checkpoint(self.step, tensors, {**describe(config, spec), "train_seconds": self.seconds})

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load the state of a checkpoint.

        Raises:
            DamagedCheckpointError: the checkpoint does not fit; the state is then as it was.
        """
        seconds = checkpoint.meta.get("train_seconds")
        if not isinstance(seconds, int | float) or not 0.0 <= seconds < math.inf:
            raise DamagedCheckpointError(f"train_seconds must be a number, got {seconds!r}")
        model = checkpoint.group("model", like=self.model.state_dict())
        ema = checkpoint.group("ema", like=self.ema.model.state_dict())
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in checkpoint.group("optimizer", like=self._optimizer_layout()).items():
            index, _, name = key.partition(".")
            moments.setdefault(int(index), {})[name] = value

        self.step, self.seconds = checkpoint.step, seconds
        self.model.load_state_dict(model)
        self.ema.model.load_state_dict(ema)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})

    def _optimizer_tensors(self) -> dict[str, Tensor]:
        states = self.optimizer.state_dict()["state"]
        return {f"{index}.{name}": value for index, values in states.items() for name, value in values.items()}

    def _optimizer_layout(self) -> dict[str, Tensor]:
        """Return tensors with the names, shapes and dtypes that :meth:`_optimizer_tensors` has after a step."""
        step = torch.empty((), dtype=torch.float32)
        parts = [{"step": step, "exp_avg": p, "exp_avg_sq": p} for p in self.model.parameters()]
        return {f"{index}.{name}": value for index, values in enumerate(parts) for name, value in values.items()}
