"""One call of a flow-step op: the affine combination it computes, and its flat form for autograd and custom ops."""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from ..._checks import check_batched, check_floating, check_like, check_recording, check_time
from ...kernels.flow_step.reference import Coefficient
from ..random import GaussianNoise

Noise = Tensor | GaussianNoise
PathTerms = tuple[Coefficient, Coefficient, Coefficient]  # the factors of x1, x0 and z


class AffinePath(Protocol):
    """The part of a path that the ops need. :mod:`fastflow.paths` has the usual ones; any object like this will do."""

    @property
    def domain(self) -> tuple[float, float]:
        """The closed interval of t on which the velocity is finite."""

    def position(self, t: Tensor) -> PathTerms:
        """Return ``(alpha, beta, gamma)`` at t ``[B]``, each ``[B]`` or a float constant."""

    def velocity(self, t: Tensor) -> PathTerms:
        """Return their derivatives in t."""


class Combination(NamedTuple):
    """``c1 x1 + c0 x0 + cz z``, the position or the velocity on a path.

    x1: ``[B, ...]``. x0: like x1, or drawn. z: like x1, drawn, or None where cz is the constant zero.
    c1, c0, cz: ``[B]`` or a float constant.
    """

    x1: Tensor
    x0: Noise
    z: Noise | None
    c1: Coefficient
    c0: Coefficient
    cz: Coefficient

    @property
    def tensors(self) -> list[Tensor]:
        return [x for x in (self.x1, self.x0, self.z) if isinstance(x, Tensor)]

    def flatten(self) -> "Operands":
        """Return the tensors on one side, the streams of drawn noise on the other; constants become 0-d tensors."""
        return Operands(
            self.x1,
            _given(self.x0),
            _given(self.z),
            _as_tensor(self.c1),
            _as_tensor(self.c0),
            _as_tensor(self.cz),
            _stream(self.x0),
            _stream(self.z),
        )


class Term(NamedTuple):
    """``c x``, one of the three terms of a combination."""

    x: Any
    c: Any


class Operands(NamedTuple):
    """A combination in the flat form that ``Function.apply`` and custom ops take, in their order.

    The rules also use it for what belongs to each operand: tangents, gradients and ``needs_input_grad``.

    x1: ``[B, ...]``. x0, z: like x1, or None where drawn or absent. c1, c0, cz: fp32 ``[B]``, or 0-d on the CPU for a
    constant. x0_stream, z_stream: ``(seed, offset, first_sample)`` of drawn noise, else empty.
    """

    x1: Any
    x0: Any
    z: Any
    c1: Any
    c0: Any
    cz: Any
    x0_stream: Any
    z_stream: Any

    @property
    def tensors(self) -> tuple[Any, ...]:
        return self[:6]

    @property
    def streams(self) -> tuple[Any, Any]:
        return self.x0_stream, self.z_stream

    @property
    def terms(self) -> tuple[Term, Term, Term]:
        return Term(self.x1, self.c1), Term(self.x0, self.c0), Term(self.z, self.cz)

    def draw(self, dtype: torch.dtype) -> "Operands":
        """Replace the streams of drawn noise by the noise itself."""

        def drawn(x: Any, stream: Any) -> Any:
            if not stream:
                return x
            return GaussianNoise(*stream).materialize(self.x1.shape, dtype=dtype, device=self.x1.device)

        return self._replace(
            x0=drawn(self.x0, self.x0_stream), z=drawn(self.z, self.z_stream), x0_stream=(), z_stream=()
        )


def combination(x0: Noise, x1: Tensor, noise: Noise | None, factors: PathTerms, path: AffinePath) -> Combination:
    """Return the combination with these factors, without the third term if its factor is the constant zero."""
    c1, c0, cz = factors
    if isinstance(cz, float) and cz == 0.0:
        noise = None
    elif noise is None:
        raise ValueError(f"noise must be a tensor or GaussianNoise, because {path} has a third term; got None")
    return Combination(x1, x0, noise, c1, c0, cz)


def check_operands(x0: object, x1: object, t: Tensor | float, path: AffinePath, noise: object) -> Tensor:
    """Return t as ``[B]``; raise unless the operands are one batch on one device, and x0 and noise two draws."""
    check_recording()
    x1 = check_batched("x1", x1)
    for name, x in (("x0", x0), ("noise", noise)):
        if isinstance(x, GaussianNoise):
            x.check_shape(x1.shape)
        elif not (name == "noise" and x is None):
            check_like(name, check_floating(name, x), "x1", x1)
    if isinstance(x0, GaussianNoise) and isinstance(noise, GaussianNoise):
        _check_apart(x0, noise, x1.shape[0])
    return check_time(t, path, x1)


def _check_apart(x0: GaussianNoise, noise: GaussianNoise, batch: int) -> None:
    """Raise a ValueError if the two share samples: they would be the same numbers, and not independent."""
    if (x0.seed, x0.offset) != (noise.seed, noise.offset):
        return
    if abs(x0.first_sample - noise.first_sample) < max(1, batch):
        raise ValueError(f"noise must be another draw than x0, with another offset, got {noise} beside {x0}")


def _given(x: Noise | None) -> Tensor | None:
    return None if isinstance(x, GaussianNoise) else x


def _stream(x: Noise | None) -> tuple[int, ...]:
    return (x.seed, x.offset, x.first_sample) if isinstance(x, GaussianNoise) else ()


def _as_tensor(c: Coefficient) -> Tensor:
    return c.float() if isinstance(c, Tensor) else torch.tensor(c)
