"""Check that a field treats the samples of a batch independently."""

import torch
from torch import Tensor

from ...kernels.noise.domains import Domain
from ..random import normals
from .jacobian import Products


def check_independence(products: Products, x: Tensor, seed: int, offset: int) -> None:
    """Raise a ValueError if a sample's value depends on another sample.

    Any two samples differ in some bit of their index. So for every bit, vectors that are zero for the samples on one
    side must give Jacobian products that are zero there.
    """
    num = x.shape[0]
    index = torch.arange(num, device=x.device)
    sides = [index >> bit & 1 == side for bit in range((num - 1).bit_length()) for side in (0, 1)]
    if not sides:
        return
    inside = torch.stack(sides)  # [S, B]
    shape = (len(sides), *x.shape)
    noise = normals(shape, seed, offset, 0, Domain.INDEPENDENCE, dtype=x.dtype, device=x.device)
    rows = inside.view(*inside.shape, *(1,) * (x.ndim - 1))
    _, out = products(torch.where(rows, noise, 0.0))
    reached = (out.reshape(*inside.shape, -1) != 0).any(2) & ~inside
    if bool(reached.any()):
        raise ValueError(
            f"field must treat the samples of a batch independently, but sample {int(reached.any(0).nonzero()[0])} "
            "and others depend on each other"
        )
