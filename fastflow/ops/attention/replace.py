"""Use fastflow's attention in models you cannot edit."""

from typing import Any

import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from .api import attention


class replace_sdpa(TorchFunctionMode):  # noqa: N801
    """Run :func:`attention` in place of ``F.scaled_dot_product_attention``, however a model imported that.

    >>> with replace_sdpa():
    ...     out, out_tangent = torch.func.jvp(model, (x,), (v,))

    backend: as for :func:`attention`.
    """

    def __init__(self, backend: str = "auto") -> None:
        super().__init__()
        self.backend = backend

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}), backend=self.backend)
        return func(*args, **(kwargs or {}))
