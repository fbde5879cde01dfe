"""Convert decoded pixels to opaque sRGB."""

import functools
import io
from typing import Any, NamedTuple

import numpy as np

from ..extras import extra

_SRGB_GAMMA = 1.0 / 2.2
_PROBE = 6  # levels of each channel with which a profile is compared with sRGB


class Look(NamedTuple):
    """The colour space of an image's numbers: an ICC profile or the gamma of a PNG, else sRGB."""

    profile: bytes | None
    gamma: float | None

    @classmethod
    def of(cls, image: Any) -> "Look":
        """Read the look from an opened image. A profile, and a PNG's sRGB chunk, outrank a gamma."""
        profile, gamma = image.info.get("icc_profile"), image.info.get("gamma")
        if profile or gamma is None or "srgb" in image.info or abs(gamma - _SRGB_GAMMA) < 0.005:
            return cls(profile or None, None)
        if not gamma > 0.0:
            raise ValueError(f"its gamma is {gamma}")
        return cls(None, gamma)

    @property
    def is_srgb(self) -> bool:
        """True if the numbers are sRGB as they stand."""
        return self.profile is None and self.gamma is None


def to_srgb(image: Any, look: Look) -> Any:
    """Return an image without transparency as sRGB, mode RGB."""
    if image.mode == "LAB":
        cms = extra("PIL.ImageCms")
        return cms.profileToProfile(image, cms.createProfile("LAB"), cms.createProfile("sRGB"), outputMode="RGB")
    if image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    if look.profile is not None:
        transform, mode = _transform(look.profile, image.mode)
        image = image.convert(mode)
        return image.convert("RGB") if transform is None else extra("PIL.ImageCms").applyTransform(image, transform)
    image = image.convert("RGB")
    return image if look.gamma is None else image.point(3 * _gamma_table(look.gamma))


def over_white(image: Any, alpha: Any) -> Any:
    """Lay an RGB image over white; alpha is its opacity, mode L."""
    pil = extra("PIL.Image")
    return pil.composite(image, pil.new("RGB", image.size, "white"), alpha)


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> tuple[Any, str]:
    """Return the transform from a profile to sRGB, None if it changes no value by more than a level, and its mode."""
    cms = extra("PIL.ImageCms")
    source = cms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    wanted = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
    if wanted is None or (wanted != mode and (wanted, mode) != ("RGB", "L")):
        raise ValueError(f"its colour profile describes {space} colours, and its pixels are {mode}")
    transform = cms.buildTransform(source, cms.createProfile("sRGB"), wanted, "RGB")
    if wanted == "RGB":
        levels = np.linspace(0, 255, _PROBE).round().astype(np.uint8)
        probe = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(_PROBE, -1, 3)
        shown = np.array(cms.applyTransform(extra("PIL.Image").fromarray(probe), transform))
        if np.abs(shown.astype(int) - probe.astype(int)).max() <= 1:
            return None, wanted
    return transform, wanted


def _gamma_table(gamma: float) -> list[int]:
    """Return sRGB levels for the 256 levels of a file with this gamma: light is ``level ** (1 / gamma)``."""
    light = np.linspace(0.0, 1.0, 256) ** (1.0 / gamma)
    srgb = np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)
    return (255.0 * srgb + 0.5).astype(int).tolist()
