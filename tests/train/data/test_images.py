"""Images as their files show them, or an error: every mode, orientation and colour space that Pillow opens."""

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastflow.train.data.images import read_image

Image = pytest.importorskip("PIL.Image")
ImageCms = pytest.importorskip("PIL.ImageCms")
Orientation = 274
RED, GREEN = (255, 0, 0), (0, 128, 0)


def saved(image: Any, suffix: str = "png", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper()), **options)
    return stream.getvalue()


def shown(content: bytes, size: int = 8, name: str = "a.png") -> torch.Tensor:
    pixels = read_image(content, Path(name), size)
    assert pixels.shape == (3, size, size)
    assert pixels.dtype == torch.float32
    return pixels


def colour(content: bytes) -> list[float]:
    """The colour of an image of one colour, in [0, 255]."""
    pixels = shown(content)
    assert torch.allclose(pixels, pixels[:, :1, :1].expand_as(pixels), atol=1e-6)
    return (255.0 * pixels[:, 0, 0]).tolist()


def png(bit_depth: int, colour_type: int, row: bytes, *chunks: tuple[bytes, bytes], size: int = 4) -> bytes:
    """A PNG whose every row holds these bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", size, size, bit_depth, colour_type, 0, 0, 0)
    pixels = zlib.compress((b"\0" + row) * size)
    body = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body)


def flat(mode: str, value: Any) -> Any:
    return Image.new(mode, (8, 8), value)


def deep(value: int, dtype: str = "<u2") -> Any:
    return Image.fromarray(np.full((8, 8), value, dtype=dtype))


def palette(*colours: tuple[int, ...], mode: str = "RGB") -> Any:
    image = flat("P", len(colours) - 1)
    image.putpalette([level for entry in colours for level in entry], mode)
    return image


GREY16 = 20000 * 255 / 65535

SHOWN = {
    "1": (lambda: saved(flat("1", 1)), (255, 255, 255)),
    "1 TIFF, white is zero": (lambda: saved(flat("1", 1), "tif", tiffinfo={262: 0}), (0, 0, 0)),
    "L": (lambda: saved(flat("L", 100)), (100, 100, 100)),
    "L JPEG": (lambda: saved(flat("L", 100), "jpg"), (100, 100, 100)),
    "L TIFF, white is zero": (
        lambda: saved(flat("L", 100), "tif", tiffinfo={262: 0}),
        (100, 100, 100),
    ),  # stored as 155
    "LA": (lambda: saved(flat("LA", (100, 255))), (100, 100, 100)),
    "LA, half": (lambda: saved(flat("LA", (0, 51))), (204, 204, 204)),
    "LA, hidden": (lambda: saved(flat("LA", (100, 0))), (255, 255, 255)),
    "LA TIFF": (lambda: saved(flat("LA", (100, 0)), "tif"), (255, 255, 255)),
    "P": (lambda: saved(palette(RED, GREEN)), GREEN),
    "P, transparent index": (lambda: saved(palette(RED, GREEN), transparency=1), (255, 255, 255)),
    "P, opaque index": (lambda: saved(palette(RED, GREEN), transparency=0), GREEN),
    "P, transparent bytes": (lambda: saved(palette(RED, GREEN), transparency=b"\xff\x00"), (255, 255, 255)),
    "P, half": (lambda: saved(palette(RED, (0, 0, 0)), transparency=b"\xff\x33"), (204, 204, 204)),
    "P GIF": (lambda: saved(palette(RED, GREEN), "gif"), GREEN),
    "P GIF, transparent": (lambda: saved(palette(RED, GREEN), "gif", transparency=1), (255, 255, 255)),
    "P TIFF": (lambda: saved(palette(RED, GREEN), "tif"), GREEN),
    "P BMP": (lambda: saved(palette(RED, GREEN), "bmp"), GREEN),
    "RGB": (lambda: saved(flat("RGB", GREEN)), GREEN),
    "RGB BMP": (lambda: saved(flat("RGB", GREEN), "bmp"), GREEN),
    "RGB TGA": (lambda: saved(flat("RGB", GREEN), "tga"), GREEN),
    "RGB PPM": (lambda: saved(flat("RGB", GREEN), "ppm"), GREEN),
    "RGB, transparent colour": (lambda: saved(flat("RGB", RED), transparency=RED), (255, 255, 255)),
    "RGB, other colour transparent": (lambda: saved(flat("RGB", RED), transparency=GREEN), RED),
    "L, transparent grey": (lambda: saved(flat("L", 100), transparency=100), (255, 255, 255)),
    "RGBA": (lambda: saved(flat("RGBA", (*GREEN, 255))), GREEN),
    "RGBA, hidden": (lambda: saved(flat("RGBA", (*RED, 0))), (255, 255, 255)),
    "RGBA, half": (lambda: saved(flat("RGBA", (*RED, 51))), (255, 204, 204)),
    "RGBA WebP": (lambda: saved(flat("RGBA", (*RED, 0)), "webp", lossless=True, exact=True), (255, 255, 255)),
    "RGBA TIFF": (lambda: saved(flat("RGBA", (*RED, 51)), "tif"), (255, 204, 204)),
    "RGBA TGA": (lambda: saved(flat("RGBA", (*RED, 51)), "tga"), (255, 204, 204)),
    "RGBX TIFF": (lambda: saved(flat("RGBX", (*GREEN, 0)), "tif"), GREEN),
    "CMYK TIFF": (lambda: saved(flat("CMYK", (0, 255, 255, 0)), "tif"), RED),
    "CMYK JPEG": (lambda: saved(flat("CMYK", (255, 255, 255, 0)), "jpg"), (0, 0, 0)),  # Pillow writes Adobe's inversion
    "LAB TIFF": (lambda: saved(flat("LAB", (136, 128, 128)), "tif"), (127, 127, 127)),
    "16-bit PNG": (lambda: saved(deep(20000)), 3 * (GREY16,)),
    "16-bit TIFF": (lambda: saved(deep(20000), "tif"), 3 * (GREY16,)),
    "16-bit TIFF, big-endian": (lambda: saved(deep(20000, ">u2"), "tif"), 3 * (GREY16,)),
    "16-bit TIFF, white is zero": (lambda: saved(deep(20000), "tif", tiffinfo={262: 0}), 3 * (255 - GREY16,)),
    "16-bit PGM": (lambda: b"P5 8 8 65535\n" + 64 * struct.pack(">H", 20000), 3 * (GREY16,)),
    "10-bit PGM": (lambda: b"P5 8 8 1023\n" + 64 * struct.pack(">H", 341), (85, 85, 85)),
    "16-bit JPEG 2000": (lambda: saved(deep(20000), "jp2"), 3 * (GREY16,)),
    "16-bit PNG, transparent grey": (
        lambda: png(16, 0, 4 * struct.pack(">H", 20000), (b"tRNS", struct.pack(">H", 20000))),
        (255, 255, 255),
    ),
    "16-bit RGB PNG": (lambda: png(16, 2, 4 * struct.pack(">3H", 0xFFFF, 0x8080, 0)), (255, 128, 0)),
    "16-bit RGBA PNG": (lambda: png(16, 6, 4 * struct.pack(">4H", 0xFFFF, 0, 0, 0)), (255, 255, 255)),
    "16-bit LA PNG": (lambda: png(16, 4, 4 * struct.pack(">2H", 0x8080, 0xFFFF)), (128, 128, 128)),
    "2-bit PNG": (lambda: png(2, 0, b"\x55"), (85, 85, 85)),
    "2-bit PNG, transparent grey": (lambda: png(2, 0, b"\x55", (b"tRNS", b"\0\1")), (255, 255, 255)),
    "2-bit PNG, other grey transparent": (lambda: png(2, 0, b"\x55", (b"tRNS", b"\0\2")), (85, 85, 85)),
    "4-bit PNG, transparent grey": (lambda: png(4, 0, b"\x33\x33", (b"tRNS", b"\0\3")), (255, 255, 255)),
    "1-bit PNG, transparent black": (lambda: png(1, 0, b"\x00", (b"tRNS", b"\0\0")), (255, 255, 255)),
    "1-bit PNG, transparent white": (lambda: png(1, 0, b"\x00", (b"tRNS", b"\0\1")), (0, 0, 0)),
    "linear gamma": (lambda: png(8, 0, bytes(4 * [55]), (b"gAMA", struct.pack(">I", 100000))), 3 * (128,)),
    "usual gamma": (lambda: png(8, 0, bytes(4 * [55]), (b"gAMA", struct.pack(">I", 45455))), 3 * (55,)),
    "gamma beside an sRGB chunk": (
        lambda: png(8, 0, bytes(4 * [55]), (b"gAMA", struct.pack(">I", 100000)), (b"sRGB", b"\0")),
        3 * (55,),
    ),
}


@pytest.mark.parametrize(("make", "expected"), SHOWN.values(), ids=SHOWN)
def test_every_mode_shows_its_colour(make: Callable[[], bytes], expected: tuple[float, ...]) -> None:
    assert colour(make()) == pytest.approx(expected, abs=1.01 if max(expected) % 1 == 0 else 0.01)


@pytest.mark.skipif(int(Image.__version__.split(".")[0]) < 12, reason="older versions of Pillow refuse the file")
def test_ycbcr_tiff() -> None:
    assert colour(saved(flat("YCbCr", (76, 85, 255)), "tif")) == [254.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"]
)
def test_no_mode_shows_hidden_colours(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modes that no file above holds reach the conversion directly."""
    grey = Image.new("L", (8, 8), 255).convert("RGB").convert("CMYK" if mode == "CMYK" else "RGB")
    source = grey.convert("RGBA").convert(mode) if mode in ("RGBa", "PA", "LA", "La") else grey.convert(mode)
    source.format = "TEST"
    monkeypatch.setattr(Image, "open", lambda stream: source)
    assert colour(b"content") == [255.0, 255.0, 255.0]


def test_twelve_bits_of_tiff_are_white_at_4095() -> None:
    entries = [(256, 3, 4), (257, 3, 2), (258, 3, 12), (259, 3, 1), (262, 3, 1), (273, 3, 8), (277, 3, 1), (278, 3, 2)]
    entries.append((279, 3, 12))
    pixels = bytes([0x55, 0x55, 0x55]) * 4  # 4 × 2 values of 0x555
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", t, k, 1, v) for t, k, v in entries)
    content = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels + directory + bytes(4)
    assert colour(content) == pytest.approx(3 * [255 * 0x555 / 0xFFF], abs=0.01)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(suffix: str, orientation: int) -> None:
    """Corners of the image as it is shown; stored as the orientation says."""
    shown_pixels = np.kron(np.array([[0, 85], [170, 255]], dtype=np.uint8), np.ones((16, 16), dtype=np.uint8))
    inverse = {
        **{1: lambda x: x, 2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud},
        **{5: np.transpose, 6: lambda x: np.rot90(x, 1), 7: lambda x: np.rot90(x, 2).T, 8: lambda x: np.rot90(x, -1)},
    }[orientation]
    exif = Image.Exif()
    exif[Orientation] = orientation
    stored = Image.fromarray(np.ascontiguousarray(inverse(shown_pixels))).convert("RGB")
    pixels = shown(saved(stored, suffix, exif=exif), size=32)[0, 8::16, 8::16]
    assert (255 * pixels).round().tolist() == pytest.approx(np.array([[0, 85], [170, 255]]), abs=3)


def test_orientation_of_sixteen_bits() -> None:
    exif = Image.Exif()
    exif[Orientation] = 6
    stored = np.zeros((16, 16), dtype=np.uint16)
    stored[:, :8] = 65535  # left, and shown on top
    pixels = shown(saved(Image.fromarray(stored), exif=exif), size=16)[0]
    assert pixels[2].min() > 0.9
    assert pixels[13].max() < 0.1


def profile(space: str) -> bytes:
    """A matrix profile of linear sRGB primaries in BGR order of channels, or a grey one of gamma 1."""
    if space == "sRGB":
        return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    xyz = {b"rXYZ": (0.4360, 0.2225, 0.0139), b"gXYZ": (0.3851, 0.7169, 0.0971), b"bXYZ": (0.1431, 0.0606, 0.7141)}
    linear = b"curv" + bytes(8)
    tags = {b"wtpt": b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))}
    if space == "RGB ":
        tags |= {k: b"XYZ " + bytes(4) + struct.pack(">3i", *(round(v * 65536) for v in x)) for k, x in xyz.items()}
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), linear)
    else:
        tags[b"kTRC"] = linear
    offset, table, data = 132 + 12 * len(tags), b"", b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(tag))
        data += tag
    header = bytearray(128)
    header[0:4] = struct.pack(">I", offset + len(data))
    header[8:12] = b"\x02\x10\0\0"
    header[12:24] = b"mntr" + space.encode() + b"XYZ "
    header[36:40] = b"acsp"
    header[68:80] = struct.pack(">3i", *(round(v * 65536) for v in (0.9642, 1.0, 0.8249)))
    return bytes(header) + struct.pack(">I", len(tags)) + table + data


@pytest.mark.parametrize(
    ("image", "space", "expected"),
    [
        (flat("RGB", (55, 55, 55)), "RGB ", 128),
        (flat("L", 55), "RGB ", 128),
        (flat("L", 55), "GRAY", 128),
        (flat("LA", (55, 255)), "GRAY", 128),
        (palette(RED, (55, 55, 55)), "RGB ", 128),
        (flat("RGBA", (55, 55, 55, 255)), "RGB ", 128),
        (flat("RGBA", (55, 55, 55, 0)), "RGB ", 255),
        (deep(55 * 257), "GRAY", 128),
        (flat("RGB", (55, 55, 55)), "sRGB", 55),
    ],
    ids=lambda value: getattr(value, "mode", value),
)
def test_colour_profiles_are_converted_to_srgb(image: Any, space: str, expected: int) -> None:
    """Linear light 55 / 255 is sRGB level 128."""
    assert colour(saved(image, icc_profile=profile(space))) == pytest.approx(3 * [expected], abs=1.01)


def test_one_frame_of_a_cameras_jpeg_is_the_image() -> None:
    content = saved(flat("RGB", RED), "mpo", save_all=True, append_images=[flat("RGB", GREEN)])
    assert colour(content) == pytest.approx(RED, abs=2)


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1), (3, 7)])
def test_any_aspect_ratio(size: tuple[int, int]) -> None:
    assert colour(saved(Image.new("RGB", size, GREEN))) == pytest.approx(GREEN, abs=0.01)


def animated(suffix: str) -> bytes:
    options = {} if suffix == "tif" else {"duration": 100}
    return saved(flat("RGB", RED), suffix, save_all=True, append_images=[flat("RGB", GREEN)], **options)


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))

REFUSED = {
    "empty": (lambda: b"", "the file is empty"),
    "text": (lambda: b"hello", "it is damaged, or no image"),
    **{
        f"truncated {suffix}": (lambda suffix=suffix: saved(NOISE, suffix)[: len(saved(NOISE, suffix)) // 2], "")
        for suffix in ("png", "jpg", "gif", "webp", "tif", "bmp", "tga", "ppm", "jp2")
    },
    **{
        f"animated {suffix}": (lambda suffix=suffix: animated(suffix), "2 frames or pages") for suffix in ("gif", "png")
    },
    "animated webp": (lambda: animated("webp"), "2 frames or pages"),
    "two pages": (lambda: animated("tif"), "2 frames or pages"),
    "32-bit integers": (lambda: saved(deep(70000, "<i4"), "tif"), "signed integers"),
    "floats": (lambda: saved(deep(1, "<f4"), "tif"), r"32-bit pixels \(mode F\) have no defined white"),
    "signed bytes": (lambda: saved(flat("L", 200), "tif", tiffinfo={339: 2}), "signed integers"),
    "transparent colour of 16 bits": (
        lambda: png(16, 2, 4 * struct.pack(">3H", 1, 2, 3), (b"tRNS", struct.pack(">3H", 1, 2, 3))),
        "transparent colour has 16 bits",
    ),
    "profile of another colour space": (lambda: saved(flat("RGB", RED), icc_profile=profile("GRAY")), "describes GRAY"),
    "broken profile": (lambda: saved(flat("RGB", RED), icc_profile=b"not a profile"), "profile"),
    "bomb": (lambda: saved(Image.new("1", (14000, 14000))), r"196000000 pixels"),
    "half a bomb": (lambda: saved(Image.new("1", (9500, 9500))), r"90250000 pixels"),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_the_file_in_one_line(make: Callable[[], bytes], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^cannot read the image folder/bad.png: .*{message}") as caught:
        read_image(make(), Path("folder/bad.png"), 8)
    assert "\n" not in str(caught.value)
    assert "object at" not in str(caught.value)


def test_warnings_of_the_decoder_name_the_file(caplog: pytest.LogCaptureFixture) -> None:
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 270, 2, 1000, 5000)
    shown(saved(flat("RGB", RED), "jpg", exif=exif), name="odd.jpg")
    assert all("odd.jpg" in record.getMessage() for record in caplog.records)
