"""Read an image file as RGB, keeping what it shows, or refuse it by name."""

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..extras import extra
from .colour import Look, over_white, to_srgb

logger = logging.getLogger("fastflow")

_WITH_ALPHA = ("LA", "PA", "RGBA")
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
# Pillow keeps the transparent grey of a PNG as the file's number, and scales the pixels to 8 bits
_GREY_SCALES = {"1": 255, "L;2": 85, "L;4": 17}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF tags
_WHITE_IS_ZERO, _SIGNED = 0, 2


def read_image(content: bytes, file: Path, size: int) -> Tensor:
    """Return the central square of an image, resized: fp32 ``[3, size, size]``, RGB in [0, 1].

    The image is turned as its EXIF orientation says, converted to sRGB from its colour profile or gamma, and laid over
    white where it is transparent. Sixteen-bit greys keep their precision.

    Raises:
        ValueError: the file is damaged, too large, animated, or its pixels have no defined white; the message names it.
    """
    pil = extra("PIL.Image")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            warnings.simplefilter("error", pil.DecompressionBombWarning)
            if not content:
                raise ValueError("the file is empty")
            with pil.open(io.BytesIO(content)) as image:
                pixels = _square(_as_shown(image), size)
    except Exception as error:  # decoders raise nearly anything on a broken file
        unknown = isinstance(error, pil.UnidentifiedImageError)
        reason = "it is damaged, or no image that Pillow knows" if unknown else str(error) or type(error).__name__
        raise ValueError(f"cannot read the image {file}: {' '.join(reason.split())}") from error
    for warning in caught:
        logger.warning("%s: %s", file, warning.message)
    return pixels


def _as_shown(image: Any) -> Any:
    """Return the image as RGB, or as mode F in [0, 1] for greys of more than 8 bits."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with previews: the first one is the image
        raise ValueError(f"it holds {frames} frames or pages; save the one to learn as a file of its own")
    _check_transparent_colour(image)
    tags = image.tag_v2 if image.format == "TIFF" else {}
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise ValueError("its pixels are signed integers, which have no defined black; save them as unsigned")
    look = Look.of(image)
    sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if image.mode in ("I", "F") and not sixteen_bits:
        raise ValueError(f"its 32-bit pixels (mode {image.mode}) have no defined white; save 8 or 16 bits, or an .npy")
    key = image.info.get("transparency")
    image = extra("PIL.ImageOps").exif_transpose(image)  # loads it
    if sixteen_bits:
        white = 2 ** max(tags.get(_BITS_PER_SAMPLE, (16,))) - 1
        return _grey(image, white, tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO, key, look)
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if _is_transparent(image):
        alpha = image.convert("RGBA").getchannel("A")
        return over_white(to_srgb(_without_alpha(image), look), alpha)
    return to_srgb(image, look)


def _check_transparent_colour(image: Any) -> None:
    """Bring the transparent colour of a PNG to the scale of its decoded pixels."""
    key = image.info.get("transparency")
    if image.format != "PNG" or key is None or not image.tile:
        return
    depth = image.tile[0][3]
    if isinstance(key, int) and depth in _GREY_SCALES and image.mode != "P":
        image.info["transparency"] = key * _GREY_SCALES[depth]
    elif depth == "RGB;16B":
        raise ValueError("its transparent colour has 16 bits, which Pillow rounds; save it with an alpha channel")


def _is_transparent(image: Any) -> bool:
    if image.mode == "P" and image.palette.mode.endswith("A"):
        return True
    return image.mode in _WITH_ALPHA or "transparency" in image.info


def _without_alpha(image: Any) -> Any:
    if image.mode == "LA":
        return image.getchannel("L")
    return image if image.mode in ("1", "L", "RGB") else image.convert("RGBA").convert("RGB")


def _grey(image: Any, white: int, inverted: bool, key: int | None, look: Look) -> Any:
    values = np.array(image).astype(np.float32)
    grey = np.clip(values / white, 0.0, 1.0)
    grey = 1.0 - grey if inverted else grey
    pil = extra("PIL.Image")
    transparent = np.zeros(grey.shape, dtype=bool) if key is None else values == key
    if not look.is_srgb:  # conversions take 8 bits
        eight = pil.fromarray((255.0 * grey + 0.5).astype(np.uint8))
        return over_white(to_srgb(eight, look), pil.fromarray(np.where(transparent, 0, 255).astype(np.uint8)))
    return pil.fromarray(np.where(transparent, np.float32(1.0), grey))


def _square(image: Any, size: int) -> Tensor:
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    lanczos = extra("PIL.Image").LANCZOS
    pixels = np.array(image.resize((size, size), lanczos, (left, top, left + side, top + side)))
    if pixels.ndim == 2:
        return torch.from_numpy(pixels).clamp(0.0, 1.0).expand(3, -1, -1)
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255.0
