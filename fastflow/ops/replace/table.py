"""Every function that :class:`replace_ops` replaces, and where PyTorch keeps it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from ..._torch import builtin_functions, weight_norm_owners
from . import block, linear_algebra, losses, norms
from .attention import scaled_dot_product_attention

Replacement = Callable[..., Any]  # takes the original, then the call's arguments


@dataclass(frozen=True)
class Place:
    """An attribute that holds a function of PyTorch, and what replaces the function."""

    owner: Any
    name: str
    original: Any
    replacement: Replacement


_TABLE: list[tuple[Replacement, str, tuple[Any, ...]]] = [
    (scaled_dot_product_attention, "scaled_dot_product_attention", (F,)),
    (block.linear, "linear", (F, builtin_functions())),
    (block.gelu, "gelu", (F, builtin_functions())),
    (block.silu, "silu", (F, builtin_functions())),
    (block.rms_norm, "rms_norm", (F, torch)),
    (norms.layer_norm, "layer_norm", (F, torch)),
    (norms.native_layer_norm, "native_layer_norm", (torch,)),
    (norms.batch_norm, "batch_norm", (torch,)),
    (norms.native_batch_norm, "native_batch_norm", (torch,)),
    (norms.instance_norm, "instance_norm", (torch,)),
    (norms.weight_norm, "_weight_norm", weight_norm_owners()),
    (linear_algebra.det, "det", (torch.linalg, torch, torch.Tensor)),
    (linear_algebra.slogdet, "slogdet", (torch.linalg, torch, torch.Tensor)),
    (linear_algebra.logdet, "logdet", (torch, torch.Tensor)),
    (linear_algebra.solve, "solve", (torch.linalg,)),
    (linear_algebra.solve_ex, "solve_ex", (torch.linalg,)),
    (linear_algebra.tensorsolve, "tensorsolve", (torch.linalg,)),
    (linear_algebra.cholesky_inverse, "cholesky_inverse", (torch, torch.Tensor)),
    (linear_algebra.triangular_solve, "triangular_solve", (torch, torch.Tensor)),
    (linear_algebra.householder_product, "householder_product", (torch.linalg,)),
    (linear_algebra.householder_product, "orgqr", (torch, torch.Tensor)),
    (losses.with_class_weights, "cross_entropy", (F,)),
    (losses.with_class_weights, "nll_loss", (F,)),
    (losses.linear_cross_entropy, "linear_cross_entropy", (F,)),
    (losses.scatter_reduce, "scatter_reduce", (torch, torch.Tensor)),
]

PLACES = tuple(
    Place(owner, name, getattr(owner, name), replacement)
    for replacement, name, owners in _TABLE
    for owner in owners
    if hasattr(owner, name)  # newer than the oldest PyTorch
)

# operators that exported graphs call
_OPERATORS: dict[str, Replacement] = {
    "scaled_dot_product_attention": scaled_dot_product_attention,
    "linear": block.linear,
    "gelu": block.gelu,
    "silu": block.silu,
    "rms_norm": block.rms_norm,
    "layer_norm": norms.layer_norm,
    "native_layer_norm": norms.native_layer_norm,
    "batch_norm": norms.batch_norm,
    "native_batch_norm": norms.native_batch_norm,
    "instance_norm": norms.instance_norm,
    "linalg_det": linear_algebra.det,
    "linalg_slogdet": linear_algebra.slogdet,
    "logdet": linear_algebra.logdet,
    "linalg_solve": linear_algebra.solve,
}

# every function that a mode may meet, to what replaces it
REPLACEMENTS: dict[Any, Replacement] = {place.original: place.replacement for place in PLACES}
for _name, _replacement in _OPERATORS.items():
    _operator = getattr(torch.ops.aten, _name)
    REPLACEMENTS[_operator] = REPLACEMENTS[_operator.default] = _replacement
