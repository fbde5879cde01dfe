"""The probes of one call: drawn from a stream, or the caller's own."""

from dataclasses import dataclass

from torch import Tensor

from ...kernels.divergence import reference
from .custom_ops import Draw
from .options import DivergenceOptions
from .select import Implementation, select


@dataclass(frozen=True)
class DrawnProbes:
    """Probes of a stream, of the shape of x, drawn and reduced by one implementation."""

    options: DivergenceOptions
    x: Tensor
    implementation: Implementation

    def take(self, start: int, stop: int) -> Tensor:
        """Return probes start to stop, ``[stop - start, B, ...]``."""
        return self._draw(start).materialize((stop - start, *self.x.shape), self.x.device, self.implementation.name)

    def dots(self, products: Tensor, probes: Tensor, start: int) -> Tensor:
        """Return ``Σ_j ε_kbj products_kbj``, ``[K, B]``, for the probes from start on."""
        implementation = self.implementation
        if products.dtype != self.x.dtype:  # the field changes the dtype, perhaps to one that the kernels do not take
            implementation = select(self.options.backend, self.x, products)
        return implementation.dots(products, probes, self._draw(start))

    def _draw(self, start: int) -> Draw:
        return Draw(self.options.seed, self.options.offset, start, self.options.distribution, self.x.dtype)


@dataclass(frozen=True)
class GivenProbes:
    """The caller's own probes."""

    probes: Tensor
    x: Tensor

    def take(self, start: int, stop: int) -> Tensor:
        return self.probes[start:stop].to(self.x)

    def dots(self, products: Tensor, probes: Tensor, start: int) -> Tensor:
        return reference.dots(products, probes)


def probes_of(options: DivergenceOptions, x: Tensor) -> DrawnProbes | GivenProbes:
    """Return the probes for x; raise a ValueError if the backend cannot draw them."""
    if options.probes is not None:
        return GivenProbes(options.probes, x)
    return DrawnProbes(options, x, select(options.backend, x))
