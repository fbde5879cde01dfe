"""The names of the paths, for command lines and configuration files."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Literal, NamedTuple

from .._checks import check_choice
from .affine import Path
from .schedules import VP, CondOT, Cosine, LinearVP, Polynomial, SchrodingerBridge, SigmaMin, Tube


class Entry(NamedTuple):
    """The constructor of a path, and the name of its argument that takes :func:`build`'s sigma, if it has one."""

    make: Callable[..., Path]
    sigma: str | None = None


REGISTRY = {
    "condot": Entry(CondOT),
    "cosine": Entry(Cosine),
    "polynomial": Entry(partial(Polynomial, n=2)),
    "linear_vp": Entry(LinearVP),
    "vp": Entry(VP),
    "sigma_min": Entry(SigmaMin, sigma="sigma_min"),
    "tube": Entry(Tube, sigma="sigma"),
    "independent": Entry(Tube, sigma="sigma"),  # deprecated, as the class paths.Independent
    "bridge": Entry(SchrodingerBridge, sigma="sigma"),
}
NAMES = tuple(REGISTRY)

if TYPE_CHECKING:
    PathName = str  # type checkers do not accept a computed Literal
else:
    PathName = Literal[NAMES]  # command lines built from annotations read their choices from it


def build(name: PathName, *, sigma: float | None = None) -> Path:
    """Build the path of this name.

    Args:
        name: one of ``NAMES``.
        sigma: width of the paths that have one; the others ignore it.

    Raises:
        TypeError: sigma is not a number.
        ValueError: an unknown name, no sigma for a path that needs it, or a sigma outside the path's range.
    """
    check_choice("path name", name, NAMES)
    make, sigma_argument = REGISTRY[name]
    if sigma_argument is None:
        return make()
    if sigma is None:
        raise ValueError(f"sigma must be given for path {name!r}, got None")
    return make(**{sigma_argument: sigma})
