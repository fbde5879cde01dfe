"""Find the images of a folder and their classes."""

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (
    *(".apng", ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".tga", ".tif", ".tiff", ".webp"),
)
# images all the same: leaving them out in silence would train on other data than the folder's
_OTHER_IMAGE_SUFFIXES = (
    *(".arw", ".cr2", ".cr3", ".dds", ".dng", ".eps", ".exr", ".hdr", ".heic", ".heif", ".hif", ".icns", ".ico"),
    *(".j2k", ".jpx", ".jxl", ".nef", ".pcx", ".psd", ".svg", ".xbm", ".xpm"),
)
# folders that file systems, archives and tools leave behind
_JUNK = ("$RECYCLE.BIN", "@eaDir", "System Volume Information", "__MACOSX", "__pycache__", "lost+found")
_SPLITS = {"dev", "eval", "test", "testing", "train", "training", "val", "valid", "validation"}


class Listing(NamedTuple):
    """Image files, the names of their classes, and the class of each file; None for a folder without classes."""

    files: list[Path]
    class_names: tuple[str, ...]
    classes: list[int] | None


class _Content(NamedTuple):
    images: list[Path]
    folders: list[Path]


def list_images(root: Path) -> Listing:
    """List the images of a folder: of the folder itself, without classes, or of its subfolders, one for each class.

    Hidden files and folders, and those that systems leave behind, do not count. Links are followed.

    Raises:
        ValueError: there are no images, the classes are not clear, or a link is broken; the message names the place.
    """
    top = _content(root)
    below = {folder: list(_walk(folder, [root])) for folder in top.folders}
    if not top.images and not any(below.values()):
        raise ValueError(f"no images under {root} (looked for {', '.join(IMAGE_SUFFIXES)})")
    if top.images:
        if any(below.values()):
            raise ValueError(
                f"{root} holds images both beside and inside its subfolders; use subfolders for all or for none"
            )
        return Listing(top.images, (), None)
    for folder, files in below.items():
        if not files:
            raise ValueError(f"the class folder {folder} holds no images: fill it or remove it")
        if all(file.parent != folder for file in files):
            raise ValueError(
                f"{folder} holds folders of images and no images, so it is no class: "
                f"if its subfolders are the classes, the data is {folder}"
            )
    _check_names(root, [folder.name for folder in below])
    names = tuple(folder.name for folder in below)
    classes = [k for k, files in enumerate(below.values()) for _ in files]
    return Listing([file for files in below.values() for file in files], names, classes)


def _check_names(root: Path, names: list[str]) -> None:
    if {name.lower() for name in names} <= _SPLITS:
        raise ValueError(
            f"{root} holds the splits {', '.join(names)}, which are no classes: the data is one of them, "
            f"as in {root / names[0]}"
        )
    seen: dict[str, str] = {}
    for name in names:
        same = seen.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if same != name:
            raise ValueError(f"the class folders {same} and {name} in {root} differ only in case or encoding")


def _walk(folder: Path, ancestors: list[Path]) -> Iterator[Path]:
    """Yield the images of a folder and its subfolders, at any depth."""
    if any(folder.samefile(ancestor) for ancestor in ancestors):
        raise ValueError(f"{folder} is a link to a folder that contains it")
    content = _content(folder)
    yield from content.images
    for subfolder in content.folders:
        yield from _walk(subfolder, [*ancestors, folder])


def _content(folder: Path) -> _Content:
    """Return the images and subfolders that count, sorted by name."""
    content = _Content([], [])
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            path = folder / entry.name
            suffix = path.suffix.lower()
            if entry.name.startswith(".") or entry.name in _JUNK:
                continue
            if path.is_dir():
                content.folders.append(path)
            elif suffix in _OTHER_IMAGE_SUFFIXES:
                raise ValueError(f"cannot read the image {path}: {suffix} files are not supported, convert it to .png")
            elif suffix in IMAGE_SUFFIXES:
                if not path.is_file():
                    raise ValueError(f"cannot read the image {path}: {_not_a_file(path)}")
                content.images.append(path)
            elif path.is_symlink() and not path.exists():
                raise ValueError(f"{path} is {_not_a_file(path)}")
    return content


def _not_a_file(path: Path) -> str:
    return "a broken link" if path.is_symlink() else "not a regular file"
