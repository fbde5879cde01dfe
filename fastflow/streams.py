"""A stream of draws for a training loop, which any number of processes share."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from ._checks import check_integer, debug_checks
from .ops.random import GaussianNoise, check_position
from .paths.affine import Path
from .paths.times import TimeDistribution, sample_times


class Stream:
    """Random draws for a training loop, each new and each shared by all processes.

    Every call of :meth:`noise` or :meth:`times` is the next draw, a function of the seed and of the number of draws
    before it. In a draw for B samples, process r takes samples ``r B .. r B + B - 1`` of one global draw, so that one
    process with 4 B samples and four with B each see the same numbers. No two processes or micro-batches of gradient
    accumulation share numbers.

    Make one in every process, from the same seed, and draw in the same order, with the same B in all processes. Drop or
    pad an incomplete last batch: with another B in one process the shares overlap, which only ``FASTFLOW_DEBUG=1``
    finds (each draw then compares the processes).

    Args:
        seed: 0 <= seed < 2^63.
        rank, world_size: of this process; by default those of torch.distributed at the time of a draw, or 0 and 1 where
            it is not initialized.

    Raises:
        TypeError: an argument is not an int.
        ValueError: seed is out of range, or not ``0 <= rank < world_size``.
    """

    def __init__(self, seed: int, *, rank: int | None = None, world_size: int | None = None) -> None:
        check_position("seed", seed)
        for name, value in (("rank", rank), ("world_size", world_size)):
            if value is not None:
                check_integer(name, value)
        if rank is not None:
            _check_rank(rank, rank + 1 if world_size is None else world_size)
        elif world_size is not None:
            _check_rank(0, world_size)
        self._seed, self._draws = seed, 0
        self._rank, self._world_size = rank, world_size

    def __repr__(self) -> str:
        return f"Stream(seed={self._seed}, draws={self._draws})"

    def noise(self, batch_size: int) -> GaussianNoise:
        """Return this process's share of the next draw, as noise for a tensor of at most batch_size samples.

        Raises:
            TypeError, ValueError: batch_size is not an int, or is negative.
            RuntimeError: torchrun started several processes, and torch.distributed is not initialized yet.
        """
        noise = GaussianNoise(self._seed, self._draws, self._first_sample(batch_size), batch_size)
        self._draws += 1
        return noise

    def times(
        self,
        path: Path,
        batch_size: int,
        *,
        distribution: TimeDistribution = "uniform",
        mean: float = 0.0,
        std: float = 1.0,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """Return this process's share of the next draw as training times, fp32 ``[batch_size]``.

        Arguments are as for :func:`fastflow.paths.sample_times`, errors also as for :meth:`noise`.
        """
        times = sample_times(
            path,
            batch_size,
            seed=self._seed,
            offset=self._draws,
            first_sample=self._first_sample(batch_size),
            distribution=distribution,
            mean=mean,
            std=std,
            device=device,
        )
        self._draws += 1
        return times

    def state_dict(self) -> dict[str, int]:
        """Return the seed and the number of draws: the same in every process, and for any number of them."""
        return {"seed": self._seed, "draws": self._draws}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the stream that returned this state was, perhaps with another number of processes.

        Raises:
            TypeError, ValueError: the state is not that of a stream.
        """
        if not isinstance(state, Mapping):
            raise TypeError(f"state must be a mapping, got {type(state).__name__}")
        if state.keys() != {"seed", "draws"}:
            raise ValueError(f"state must have the keys 'seed' and 'draws', got {sorted(map(str, state))}")
        check_position("seed", state["seed"])
        check_position("draws", state["draws"])
        self._seed, self._draws = state["seed"], state["draws"]

    def _first_sample(self, batch_size: int) -> int:
        """Return the first sample of this process's share of the next draw."""
        check_integer("batch_size", batch_size)
        if batch_size < 0:
            raise ValueError(f"batch_size must not be negative, got {batch_size}")
        if debug_checks() and distributed.is_available() and distributed.is_initialized():
            _check_same_everywhere({**self.state_dict(), "batch_size": batch_size})
        return self._current_rank() * batch_size

    def _current_rank(self) -> int:
        if self._rank is not None and self._world_size is not None:
            return self._rank
        rank, world_size = 0, 1
        if distributed.is_available() and distributed.is_initialized():
            rank, world_size = distributed.get_rank(), distributed.get_world_size()
        elif int(os.environ.get("WORLD_SIZE") or 1) > 1:
            raise RuntimeError(
                f"WORLD_SIZE={os.environ['WORLD_SIZE']} in the environment, but torch.distributed is not initialized: "
                "every process would draw the same numbers. Call init_process_group first, or pass rank and world_size"
            )
        rank = rank if self._rank is None else self._rank
        _check_rank(rank, world_size if self._world_size is None else self._world_size)
        return rank


def _check_rank(rank: int, world_size: int) -> None:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank must satisfy 0 <= rank < world_size, got rank {rank} and world_size {world_size}")


def _check_same_everywhere(draw: dict[str, int]) -> None:
    draws: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(draws, draw)
    if any(other != draw for other in draws):
        raise RuntimeError(f"every process must make the same draw, got {draws} by rank")
