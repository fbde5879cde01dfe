"""Checkpoints that survive a crash at any moment.

They are written to a temporary folder, fsynced, renamed and checksummed, and hold no pickles.
"""

import hashlib
import json
import os
import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .extras import extra

_FORMAT = 2
_MANIFEST = "manifest.json"
_PREFIX = "step_"


class DamagedCheckpointError(RuntimeError):
    """Raised if a checkpoint is incomplete or a checksum does not match."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory: named groups of named tensors, and JSON values that describe the run."""

    step: int
    tensors: dict[str, dict[str, Tensor]]
    meta: dict[str, Any]


def save_checkpoint(root: Path, checkpoint: Checkpoint, keep: int | None = None) -> Path:
    """Write ``root/step_XXXXXXXX`` atomically, delete all but the ``keep`` newest, and return the folder.

    Each group of tensors becomes ``<group>.safetensors``. ``manifest.json`` holds the step, the meta values, and the
    size and SHA-256 of every file.
    """
    final = root / f"{_PREFIX}{checkpoint.step:08d}"
    aside = root / f".{final.name}"
    for leftover in root.glob(f".{_PREFIX}*"):
        shutil.rmtree(leftover)
    aside.mkdir(parents=True)
    files = {}
    for group, tensors in checkpoint.tensors.items():
        file = aside / f"{group}.safetensors"
        contiguous = {name: x.detach().contiguous() for name, x in tensors.items()}
        extra("safetensors.torch").save_file(contiguous, file)
        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        _fsync(file)
    manifest = {"format": _FORMAT, "step": checkpoint.step, "meta": checkpoint.meta, "files": files}
    manifest["sha256"] = _manifest_sha256(manifest)
    (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    _fsync(aside / _MANIFEST)
    _fsync(aside)
    if final.exists():  # damaged, or from an earlier attempt
        shutil.rmtree(final)
    aside.rename(final)
    _fsync(root)
    if keep is not None:
        for old in list_checkpoints(root)[keep:]:
            shutil.rmtree(old)
    return final


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint.

    Raises:
        DamagedCheckpointError: a file is missing, or its size or checksum is wrong; the message names the file.
    """
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest.pop("sha256") != _manifest_sha256(manifest):
            raise ValueError("its checksum is wrong")
        if manifest["format"] != _FORMAT:
            raise ValueError(f"its format is {manifest['format']}, and this version reads {_FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedCheckpointError(f"{folder / _MANIFEST}: {error}") from error
    tensors = {}
    for name, expected in manifest["files"].items():
        file = folder / name
        if not file.is_file():
            raise DamagedCheckpointError(f"{file} is missing")
        if file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise DamagedCheckpointError(f"{file}: its size or checksum is wrong")
        try:
            tensors[file.stem] = extra("safetensors.torch").load_file(file)
        except extra("safetensors").SafetensorError as error:
            raise DamagedCheckpointError(f"{file}: {error}") from error
    return Checkpoint(manifest["step"], tensors, manifest["meta"])


def newest_checkpoint(root: Path) -> Checkpoint | None:
    """Load the newest valid checkpoint under root, or return None if there are none; warn about damaged ones.

    Raises:
        DamagedCheckpointError: every checkpoint is damaged.
    """
    folders = list_checkpoints(root)
    for folder in folders:
        try:
            return load_checkpoint(folder)
        except DamagedCheckpointError as error:
            warnings.warn(f"skipped a damaged checkpoint: {error}", RuntimeWarning, stacklevel=2)
    if folders:
        raise DamagedCheckpointError(f"every checkpoint in {root} is damaged")
    return None


def list_checkpoints(root: Path) -> list[Path]:
    """Return the checkpoint folders under root, newest first."""
    folders = [f for f in root.glob(f"{_PREFIX}*") if f.is_dir() and f.name[len(_PREFIX) :].isdigit()]
    return sorted(folders, key=lambda f: int(f.name[len(_PREFIX) :]), reverse=True)


def _manifest_sha256(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
