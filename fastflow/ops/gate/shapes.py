"""Bring ``[..., D]`` tensors, and what is shared by the tokens of a sample, to ``[G, M, D]`` and ``[G, 1 or M, D]``."""

from torch import Tensor

from ..._checks import check_floating


def grouped(x: Tensor) -> Tensor:
    """View x ``[B, ..., D]`` as ``[B, M, D]``, ``[M, D]`` and ``[D]`` as one group."""
    if x.ndim == 3:
        return x
    return x.flatten(1, -2) if x.ndim > 3 else x.reshape(1, x.shape[:-1].numel(), x.shape[-1])


def modulation(name: str, m: Tensor, x: Tensor) -> Tensor:
    """Check m, of the layer, of a sample or of a token of x, and return it ``[G, 1 or M, D]`` to :func:`grouped` x."""
    check_floating(name, m)
    if m.device != x.device:
        raise ValueError(f"{name} must be on the device of x, {x.device}, got {m.device}")
    shape, own, ndim = x.shape, m.shape, x.ndim
    if own == shape:
        return grouped(m)
    if ndim > 2 and own[-1:] == shape[-1:]:
        if m.ndim == 2 and own[0] == shape[0]:
            return m.unsqueeze(1)
        if m.ndim == ndim and own[0] == shape[0] and own[1:-1].numel() == 1:
            return grouped(m)
    if own == shape[-1:]:
        return m.expand(shape[0] if ndim > 2 else 1, 1, -1)
    if m.ndim == ndim and all(a in (1, b) for a, b in zip(own[:-1], shape)) and own[-1] == shape[-1]:
        return grouped(m.expand(shape))
    raise ValueError(f"{name} must be {_allowed(shape)}, got shape {tuple(own)}")


def layer_wide(name: str, m: Tensor, x: Tensor) -> Tensor:
    """Check m ``[D]`` and return it ``[G, 1, D]``."""
    if check_floating(name, m).shape != x.shape[-1:]:
        raise ValueError(f"{name} must be [{x.shape[-1]}], got shape {tuple(m.shape)}")
    return modulation(name, m, x)


def _allowed(shape: tuple[int, ...]) -> str:
    B, *tokens, D = shape if len(shape) > 1 else (1, *shape)
    allowed = [[D], [B, D], [B, *(1 for _ in tokens), D], list(shape)] if tokens else [[D], list(shape)]
    *first, last = dict.fromkeys(map(str, allowed))
    return f"{', '.join(first)} or {last}" if first else last
