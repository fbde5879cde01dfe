"""The vmap rules of attention: those of any op with a batch, for a mask that may be broadcast along it."""

from torch import Tensor

from .._batching import JoinBatch


class JoinMask(JoinBatch):
    """Rules for a mask ``[B or 1, Hq or 1, Nq or 1, Nk or 1]``."""

    def join_constant(self, x: Tensor, dim: int | None, size: int, batch: int) -> Tensor:
        """Leave a mask of batch 1 as it is where nothing maps it."""
        if dim is None and x.shape[0] == 1:
            return x
        x = x.unsqueeze(0).expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
        return x.expand(size, batch, *x.shape[2:]).flatten(0, 1)
