"""Keep the graph of a Function's backward under ``autograd.grad(is_grads_batched=True, create_graph=True)``."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import _torch

Rule = Callable[..., tuple[Any, ...]]


def maps_batched_grads(rule: Rule, takes_many: bool = False) -> Rule:
    """Run the backward of a Function under ``torch.vmap`` where its cotangents are batched by autograd.

    Autograd batches them with a mechanism older than torch.func, under which the graph of an autograd.Function is lost
    without an error. ``torch.vmap`` keeps it, and takes the Function's own vmap rules.

    takes_many: rule takes K cotangents ``[K, ...]`` in place of one and returns K gradients, so nothing is mapped.
    """

    @functools.wraps(rule)
    def mapped(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        if not any(g is not None and _torch.is_batched_grad(g) for g in cotangents):
            return rule(ctx, *cotangents)
        parts = [(g, None) if g is None else _torch.unbatched_grad(g) for g in cotangents]
        level = next(level for _, level in parts if level is not None)
        if takes_many:
            size = next(g.shape[0] for g, level in parts if g is not None and level is not None)
            many = (g if g is None or at is not None else g.expand(size, *g.shape) for g, at in parts)
            return tuple(None if dx is None else _torch.batched_grad(dx, level) for dx in rule(ctx, *many))
        is_given: list[bool] = []

        def each(*cotangents: Tensor | None) -> tuple[Tensor, ...]:
            grads = rule(ctx, *cotangents)
            is_given[:] = [g is not None for g in grads]
            return tuple(g for g in grads if g is not None)

        dims = tuple(None if level is None else 0 for _, level in parts)
        found = iter(torch.vmap(each, dims)(*(g for g, _ in parts)))
        return tuple(_torch.batched_grad(next(found), level) if given else None for given in is_given)

    return mapped
