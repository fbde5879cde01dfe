"""The public divergence of a field."""

from typing import Any, NamedTuple

from torch import Tensor

from .estimators import estimate, mean_and_stderr
from .jacobian import Field
from .options import DivergenceOptions, collect, shows_options


class Divergence(NamedTuple):
    """The result of :func:`divergence`.

    value: ``field(x)``. divergence: ``[B]``. stderr: ``[B]``, the standard error of the divergence over the probes, or
    None for one probe and for the exact trace.
    """

    value: Tensor
    divergence: Tensor
    stderr: Tensor | None


@shows_options
def divergence(field: Field, x: Tensor, options: DivergenceOptions | None = None, **keywords: Any) -> Divergence:
    """Compute the divergence of a field at each sample, ``div_b = tr ∂field_b/∂x_b``, exactly or by random probes.

    Random probes estimate it as ``mean_k ε_kᵀ J ε_k``. The samples of a batch must not interact: ``field(x)[b]`` may
    depend on ``x[b]`` alone (no batch norm).

    Args:
        field: x to a tensor of the same shape; close over times, labels and parameters.
        x: ``[B, ...]``, floating point: points, images, tokens.
        options: how to estimate it, see :class:`fastflow.ops.divergence.DivergenceOptions`.
        keywords: its fields in place of options, for instance ``divergence(field, x, num_probes=16, seed=0)``.

    Returns:
        :class:`Divergence`, in fp32 (fp64 if the field's values are fp64). Value and divergence are differentiable in x
        and in all that field closes over, the standard error is not. The gradient of hutch++ holds its sketch fixed,
        which leaves it unbiased. Under ``torch.no_grad()`` no graph is kept.

    Raises:
        TypeError: x or the field's value is not a floating point tensor; an unknown keyword; options and keywords.
        ValueError: invalid options; probes of the wrong shape; a field that changes the shape or the device or,
            if checked, couples samples; a backend that cannot serve.
        RuntimeError: under ``torch.inference_mode()``, where PyTorch has no derivatives; a field whose value carries no
            graph (reverse mode, or gradients of x recorded in forward mode) or no tangent (forward mode), since it runs
            under ``torch.no_grad()``, is detached, or is computed outside PyTorch. A constant field is ``0 * x + c``.
            A value that loses only a part of its graph cannot be told from one without that part.

    Source: Hutchinson, Commun. Stat. Simul. Comput. 18 (1989); Grathwohl et al., 1810.01367, eq. 8;
    hutch++: Meyer et al., 2010.09649, algorithm 1.
    """
    value, samples = estimate(field, x, collect("divergence", options, keywords))
    return Divergence(value, *mean_and_stderr(samples))
