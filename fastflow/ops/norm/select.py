"""Select the implementation of a norm: Triton's kernels or PyTorch's."""

from torch import Tensor

from ... import _backend
from ...kernels.norm.config import MAX_WIDTH


def select(backend: str, *operands: Tensor | None) -> str:
    """Return ``"triton"`` or ``"aten"``. Raises a ValueError if Triton is requested and the kernels cannot run."""
    given = [x for x in operands if x is not None]
    if _backend.resolve(backend, "norm", *given) == "reference":
        return "aten"
    width = given[0].shape[-1]
    if width <= MAX_WIDTH:
        return "triton"
    if _backend.requested(backend) == "triton":
        raise ValueError(f"backend='triton' cannot serve norm: the kernels take rows up to {MAX_WIDTH}, not {width}")
    return "aten"
