"""Checkpoints that survive a crash at any moment.

They are written to a temporary folder, fsynced, renamed and checksummed, and hold no pickles.
"""

import errno
import functools
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor

from .errors import DamagedCheckpointError, NonFiniteError, UnsupportedCheckpointError
from .extras import extra
from .files import naming, remove

_FORMAT = 2
_MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 16 << 20
_SUFFIX = ".safetensors"
_FOLDER = re.compile(r"step_[0-9]{8,}")
_TEMPORARY = re.compile(r"\.step_[0-9]{8,}(\.old)?")
_OUT_OF_RESOURCES = (errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM)

T = TypeVar("T")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: named groups of named tensors, and JSON values that describe the run."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]

    def group(self, name: str, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a group of tensors.

        Raises:
            DamagedCheckpointError: its names, shapes or dtypes are not those of ``like``.
        """
        tensors = self.tensors.get(name, {})
        if odd := sorted(tensors.keys() ^ like.keys()):
            raise DamagedCheckpointError(f"{name}: {odd[0]} is {'unexpected' if odd[0] in tensors else 'missing'}")
        for key, want in like.items():
            got = tensors[key]
            if (got.dtype, got.shape) != (want.dtype, want.shape):
                raise DamagedCheckpointError(
                    f"{name}: {key} must be {want.dtype} of shape {tuple(want.shape)}, "
                    f"got {got.dtype} of shape {tuple(got.shape)}"
                )
        return tensors


def save_checkpoint(root: Path, checkpoint: Checkpoint, keep: int | None = None) -> Path:
    """Write ``root/step_XXXXXXXX`` atomically, and return the folder.

    Each group of tensors becomes ``<group>.safetensors``. ``manifest.json`` holds the step, the meta values, and the
    size and SHA-256 of every file. Afterwards older checkpoints are deleted, until ``keep`` valid ones are left.
    Damaged ones, later ones and everything else in the folder are neither counted nor deleted.

    Raises:
        NonFiniteError: a tensor holds an infinite value or NaN; nothing is written.
        OSError: the file system refused; the error names the file, and the earlier checkpoints stay as they were.
    """
    if name := _non_finite(checkpoint):
        good = newest_valid(root) or "none"
        raise NonFiniteError(f"{name} is not finite at step {checkpoint.step}; last good checkpoint: {good}")
    final = checkpoint_folder(root, checkpoint.step)
    aside = root / f".{final.name}"
    remove_leftovers(root)
    try:
        _write(aside, checkpoint)
        _put_in_place(aside, final)
    except BaseException:
        _remove_if_possible(aside)
        raise
    _fsync(root)
    if keep is not None:
        _prune(root, checkpoint.step, keep)
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        DamagedCheckpointError: a file is missing or altered, or a tensor is not finite; the message names the file.
        UnsupportedCheckpointError: the format is another version's.
    """
    manifest = _verified_manifest(folder)
    tensors = {}
    for name in manifest["files"]:
        file = folder / name
        try:
            tensors[file.stem] = extra("safetensors.torch").load_file(file)
        except (extra("safetensors").SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
            raise DamagedCheckpointError(f"{file}: {error}") from error
    checkpoint = Checkpoint(manifest["step"], tensors, manifest["meta"])
    if name := _non_finite(checkpoint):
        raise DamagedCheckpointError(f"{folder}: {name} is not finite")
    return checkpoint


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """Load the newest valid checkpoint under root, or return None if there are none; see :func:`restore_newest`."""
    return restore_newest(root, lambda checkpoint: checkpoint)


def restore_newest(root: Path, restore: Callable[[Checkpoint], T]) -> T | None:
    """Return what ``restore`` makes of the newest checkpoint under root that is valid, or None if there are none.

    A damaged checkpoint, or one for which ``restore`` raises a DamagedCheckpointError, is skipped with a warning.

    Raises:
        DamagedCheckpointError: every checkpoint is damaged.
        UnsupportedCheckpointError: the newest undamaged one was written by another version.
    """
    skipped: dict[Path, DamagedCheckpointError] = {}
    # list again each time: a training may delete the checkpoint that is being read, once it has written newer ones
    while folder := next((f for f in list_checkpoints(root) if f not in skipped), None):
        try:
            return _restore(folder, restore)
        except DamagedCheckpointError as error:
            if folder.exists():
                skipped[folder] = error
                warnings.warn(f"skipped a damaged checkpoint: {error}", RuntimeWarning, stacklevel=2)
    if skipped:
        newest = next(iter(skipped.values()))
        raise DamagedCheckpointError(f"every checkpoint in {root} is damaged; the newest: {newest}")
    return None


def newest_valid(root: Path) -> Path | None:
    """Return the folder of the newest checkpoint whose files are intact."""
    return next((folder for folder in list_checkpoints(root) if _is_valid(folder)), None)


def checkpoint_folder(root: Path, step: int) -> Path:
    """Return the folder of a step's checkpoint."""
    return root / f"step_{step:08d}"


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders under root, newest first."""
    numbered = [f for f in _entries(root) if _FOLDER.fullmatch(f.name) and f == checkpoint_folder(root, _step(f))]
    return sorted((f for f in numbered if f.is_dir()), key=_step, reverse=True)


def remove_leftovers(root: Path) -> None:
    """Delete what a crash during saving or deleting left in the folder."""
    for entry in _entries(root):
        if _TEMPORARY.fullmatch(entry.name):
            remove(entry)


def check_writable(root: Path) -> None:
    """Raise an OSError if checkpoints cannot be written to the folder, should it exist."""
    if os.path.lexists(root):
        remove_leftovers(root)
        probe = root / ".step_00000000"
        probe.mkdir()
        probe.rmdir()


def _restore(folder: Path, restore: Callable[[Checkpoint], T]) -> T:
    checkpoint = load_checkpoint(folder)
    try:
        return restore(checkpoint)
    except (DamagedCheckpointError, UnsupportedCheckpointError) as error:
        raise type(error)(f"{folder}: {error}") from error


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    folder.mkdir(parents=True)
    files = {}
    for group, tensors in checkpoint.tensors.items():
        file = folder / f"{group}{_SUFFIX}"
        _write_tensors(file, {name: x.detach().contiguous() for name, x in tensors.items()})
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        _fsync(file)
    manifest = {"format": _FORMAT, "step": checkpoint.step, "meta": checkpoint.meta, "files": files}
    manifest["sha256"] = _manifest_sha256(manifest)
    with naming(folder / _MANIFEST):
        (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False))
    _fsync(folder / _MANIFEST)
    _fsync(folder)


def _write_tensors(file: Path, tensors: dict[str, Tensor]) -> None:
    try:
        extra("safetensors.torch").save_file(tensors, file)
    except extra("safetensors").SafetensorError as error:  # hides the OSError in its text
        code = re.search(r"\(os error (\d+)\)", str(error))
        if code is None:
            raise OSError(f"cannot write {file}: {error}") from error
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(file)) from error


def _put_in_place(aside: Path, final: Path) -> None:
    old = final.with_name(f".{final.name}.old")
    if os.path.lexists(final):  # damaged, or from an earlier attempt
        final.rename(old)
    aside.rename(final)
    if os.path.lexists(old):
        remove(old)


def _prune(root: Path, step: int, keep: int) -> None:
    older = [f for f in list_checkpoints(root) if _step(f) < step and not f.is_symlink()]
    for folder in [f for f in older if _is_valid(f)][max(0, keep - 1) :]:
        hidden = folder.with_name(f".{folder.name}.old")
        folder.rename(hidden)  # so that a reader sees all of it or nothing
        remove(hidden)


def _verified_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest, and compare every file with its size and checksum."""
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        file = folder / name
        try:
            if not file.is_file():
                raise DamagedCheckpointError(f"{file} is missing")
            if file.resolve().parent != folder.resolve():
                raise DamagedCheckpointError(f"{file} is a link to a file outside the checkpoint")
            if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
                raise DamagedCheckpointError(f"{file}: its size or checksum is wrong")
        except OSError as error:
            _raise_damaged(file, error)
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    file = folder / _MANIFEST
    try:
        if not file.is_file():
            raise ValueError("it is missing")
        if file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise ValueError("it is too large")
        manifest = json.loads(file.read_bytes(), object_pairs_hook=_distinct, parse_constant=_no_number)
        if not isinstance(manifest, dict):
            raise ValueError("it holds no JSON object")
        if manifest.pop("sha256", None) != _manifest_sha256(manifest):
            raise ValueError("its checksum is wrong")
        if type(manifest.get("format")) is int and manifest["format"] != _FORMAT:
            raise UnsupportedCheckpointError(
                f"{file}: its format is {manifest['format']}, and this version of fastflow reads {_FORMAT}"
            )
        if reason := _why_malformed(manifest, folder):
            raise ValueError(reason)
    except OSError as error:
        _raise_damaged(file, error)
    except (ValueError, RecursionError) as error:
        raise DamagedCheckpointError(f"{file}: {error}") from error
    return manifest


def _why_malformed(manifest: dict[str, Any], folder: Path) -> str | None:
    for key, kind in (("format", int), ("step", int), ("meta", dict), ("files", dict)):
        if type(manifest.get(key)) is not kind:
            return f"{key!r} is missing or has the wrong type"
    if manifest["step"] != _step(folder):
        return f"its step is {manifest['step']}"
    for name, entry in manifest["files"].items():
        if not re.fullmatch(rf"\w+{re.escape(_SUFFIX)}", name, re.ASCII):
            return f"{name!r} is not the name of a file in the checkpoint"
        if not isinstance(entry, dict) or type(entry.get("bytes")) is not int or type(entry.get("sha256")) is not str:
            return f"the entry of {name!r} lacks its size or checksum"
    return None


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it names the same key twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"it holds the number {text}")


def _raise_damaged(file: Path, error: OSError) -> NoReturn:
    if error.errno in _OUT_OF_RESOURCES:  # may work the next time, and an older checkpoint would hide that
        raise error
    raise DamagedCheckpointError(f"{file}: {error.strerror or error}") from error


def _is_valid(folder: Path) -> bool:
    try:
        files = tuple((f.name, s.st_ino, s.st_size, s.st_mtime_ns) for f in _entries(folder) if (s := f.stat()))
    except OSError:
        return False
    return _is_valid_cached(folder, files)


@functools.lru_cache(maxsize=64)  # each save asks about the same checkpoints, and their checksums take seconds
def _is_valid_cached(folder: Path, files: tuple[tuple[str, int, int, int], ...]) -> bool:
    try:
        _verified_manifest(folder)
    except (OSError, DamagedCheckpointError, UnsupportedCheckpointError):
        return False
    return True


def _non_finite(checkpoint: Checkpoint) -> str | None:
    """Return the name of the first tensor that holds an infinite value or NaN."""
    named = {f"{g}: {n}": x for g, xs in checkpoint.tensors.items() for n, x in xs.items() if x.is_floating_point()}
    if not named:
        return None
    finite = torch.stack([x.isfinite().all().cpu() for x in named.values()])
    return None if finite.all() else list(named)[int(finite.logical_not().int().argmax())]


def _entries(folder: Path) -> list[Path]:
    """Return what is in a folder, sorted, nothing if it does not exist; unlike ``glob``, raise if it cannot be read."""
    try:
        return [folder / name for name in sorted(os.listdir(folder))]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _remove_if_possible(path: Path) -> None:
    try:
        remove(path)
    except OSError as error:
        warnings.warn(f"cannot remove {path}: {error.strerror}", RuntimeWarning, stacklevel=3)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    with naming(path):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
