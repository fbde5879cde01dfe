"""The definition of the linear layer and its tangents. torch.compile traces it.

Numbers in comments are the equations of README.md. Shapes: x ``[G, M, in]``, weight ``[G, out, in]``, bias
``[G, 1, out]`` or None, out ``[G, M, out]``; tangents with a leading K, None for zero, but not all of them.
"""

from torch import Tensor


def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor]:
    out = times(x, weight.mT)  # (1)
    return (out if bias is None else out + bias,)


def dual_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, tx: Tensor | None, tw: Tensor | None, tb: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return out and t_out ``[K, G, M, out]``."""
    (out,) = forward(x, weight, bias)
    t_out = None if tx is None else times(tx, weight.mT)  # (2)
    if tw is not None:
        term = x @ tw.mT if tw.shape[0] > 1 else times(x, tw[0].mT).unsqueeze(0)
        t_out = term if t_out is None else t_out + term
    if tb is not None:
        t_out = tb.expand(-1, *out.shape) if t_out is None else t_out + tb
    assert t_out is not None
    return out, t_out


def times(x: Tensor, w: Tensor) -> Tensor:
    """Return ``x w`` for x ``[..., G, M, a]`` and w ``[G, a, b]``: one GEMM of two axes where G is 1.

    ``F.linear`` and ``matmul`` of three axes would tie a compiled program to its batch size, under a jvp.
    """
    if w.shape[0] != 1:
        return x @ w
    lead = x.shape[:-1]
    return (x.flatten(0, -2) @ w.squeeze(0)).reshape(*lead, w.shape[-1])
