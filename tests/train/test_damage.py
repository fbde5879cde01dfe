"""Checkpoints that do not fit, with matching checksums: skipped or refused in one line, and never half restored."""

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fastflow.train import Config, load_run, train
from fastflow.train.checkpoint import load_checkpoint
from fastflow.train.errors import DamagedCheckpointError, UnsupportedCheckpointError

from .test_resume import POINTS, assert_same_run, newest

safetensors = pytest.importorskip("safetensors.torch")
for library in ("tqdm", "matplotlib", "scipy"):
    pytest.importorskip(library)

SETTINGS = {**POINTS, "steps": 3, "checkpoint_every": 1, "hidden_size": 8, "depth": 1}
Json = dict[str, Any]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(Config(**SETTINGS, out=out))
    return out


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "run"))


def last(run: Path) -> Path:
    return run / "checkpoints" / "step_00000003"


def rewrite(folder: Path, edit: Callable[[Json], object]) -> None:
    """Edit a manifest, and give it the checksum it needs."""
    file = folder / "manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["sha256"]
    edit(manifest)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps(manifest))


def in_manifest(edit: Callable[[Json], object]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, edit)


def as_text(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "manifest.json").write_text(text)


def in_tensors(group: str, edit: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path], None]:
    """Edit the first tensor of a group that is not a scalar."""

    def damage(folder: Path) -> None:
        file = folder / f"{group}.safetensors"
        tensors = {name: x.clone() for name, x in safetensors.load_file(file).items()}
        edit(tensors, next(name for name, x in tensors.items() if x.ndim))
        safetensors.save_file(tensors, file)
        entry = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        rewrite(folder, lambda m: m["files"].update({file.name: entry}))

    return damage


def rename(manifest: Json, name: str) -> None:
    manifest["files"][name] = manifest["files"].pop("ema.safetensors")


def named_outside(name: str) -> Callable[[Path], None]:
    """The file that the manifest names exists, outside the checkpoint."""

    def damage(folder: Path) -> None:
        target = Path(os.path.abspath(folder / name))
        shutil.copy(folder / "ema.safetensors", target)
        rewrite(folder, lambda m: rename(m, name))

    return damage


def linked_outside(folder: Path) -> None:
    moved = (folder / "ema.safetensors").rename(folder.parent.parent / "ema.safetensors")
    (folder / "ema.safetensors").symlink_to(moved)


def named_twice(folder: Path) -> None:
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"files": {', '"files": {"ema.safetensors": {}, ', 1))


LIES: dict[str, Callable[[Path], object]] = {
    "null": as_text("null"),
    "a number": as_text("1"),
    "an empty object": as_text("{}"),
    "deeply nested": as_text("[" * 100_000),
    "huge": lambda folder: as_text('"' + "x" * (17 << 20) + '"')(folder),
    "a folder": lambda f: [(f / "manifest.json").unlink(), (f / "manifest.json").mkdir()],
    "not UTF-8": lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe{"),
    **{f"no {key}": in_manifest(lambda m, k=key: m.pop(k)) for key in ("format", "step", "files", "meta")},
    "format in quotes": in_manifest(lambda m: m.update(format="1")),
    "format true": in_manifest(lambda m: m.update(format=True)),
    "another step": in_manifest(lambda m: m.update(step=2)),
    "files in a list": in_manifest(lambda m: m.update(files=[1])),
    "files without an entry": in_manifest(lambda m: m["files"].update({"ema.safetensors": None})),
    "size in quotes": in_manifest(lambda m: m["files"]["ema.safetensors"].update(bytes="1")),
    "size off by one": in_manifest(lambda m: m["files"]["ema.safetensors"].update(bytes=1)),
    "a file named twice": named_twice,
    "a group left out": in_manifest(lambda m: m["files"].pop("ema.safetensors")),
    "a file outside": named_outside("../ema.safetensors"),
    "a file outside by a detour": named_outside("../step_00000002/../ema.safetensors"),
    "an absolute name": lambda f: named_outside(str(f.parent / "ema.safetensors"))(f),
    "a name with NUL": in_manifest(lambda m: rename(m, "e\0.safetensors")),
    "an empty name": in_manifest(lambda m: rename(m, "")),
    "the folder itself": in_manifest(lambda m: rename(m, ".")),
    "a link outside": linked_outside,
    "no settings": in_manifest(lambda m: m["meta"].pop("config")),
    "settings null": in_manifest(lambda m: m["meta"].update(config=None)),
    "steps in quotes": in_manifest(lambda m: m["meta"]["config"].update(steps="3")),
    "an unknown path": in_manifest(lambda m: m["meta"]["config"].update(path="zigzag")),
    "an invalid setting": in_manifest(lambda m: m["meta"]["config"].update(ema_decay=7.0)),
    "no data": in_manifest(lambda m: m["meta"].pop("data")),
    "a shape of text": in_manifest(lambda m: m["meta"]["data"].update(shape=["2"])),
    "a tensor renamed": in_tensors("ema", lambda t, k: t.update(other=t.pop(k))),
    "a tensor left out": in_tensors("ema", lambda t, k: t.pop(k)),
    "a tensor reshaped": in_tensors("ema", lambda t, k: t.update({k: t[k][:1].clone()})),
    "a tensor in float64": in_tensors("ema", lambda t, k: t.update({k: t[k].double()})),
    "weights not a number": in_tensors("ema", lambda t, k: t[k].fill_(float("nan"))),
}
LIES_OF_THE_TRAINING: dict[str, Callable[[Path], object]] = {
    "seconds of text": in_manifest(lambda m: m["meta"].update(train_seconds="long")),
    "no seconds": in_manifest(lambda m: m["meta"].pop("train_seconds")),
    "negative seconds": in_manifest(lambda m: m["meta"].update(train_seconds=-1.0)),
    "weights reshaped": in_tensors("model", lambda t, k: t.update({k: t[k][:1].clone()})),
    "weights in float16": in_tensors("model", lambda t, k: t.update({k: t[k].half()})),
    "a moment renamed": in_tensors("optimizer", lambda t, k: t.update({"zz.exp_avg": t.pop(k)})),
    "a moment reshaped": in_tensors("optimizer", lambda t, k: t.update({k: t[k][:1].clone()})),
    "a moment left out": in_tensors("optimizer", lambda t, k: t.pop(k)),
    "an infinite moment": in_tensors("optimizer", lambda t, k: t[k].fill_(float("inf"))),
}


@pytest.mark.parametrize("lie", [*LIES.values(), *LIES_OF_THE_TRAINING.values()], ids=[*LIES, *LIES_OF_THE_TRAINING])
def test_a_lie_falls_back_to_the_checkpoint_before(lie: Callable[[Path], object], run: Path, whole: Path) -> None:
    lie(last(run))
    with pytest.warns(RuntimeWarning, match=r"skipped a damaged checkpoint: .*step_00000003"):
        train(Config(**SETTINGS, out=run, resume=True))
    assert_same_run(run, whole)


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_sampling_falls_back_too(lie: Callable[[Path], object], run: Path) -> None:
    lie(last(run))
    with pytest.warns(RuntimeWarning, match="step_00000003"):
        assert load_run(run).step == 2


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda m: m.update(format=99), "its format is 99, and this version of fastflow reads"),
        (lambda m: m["meta"]["config"].update(zebra=1), "config has the unknown key 'zebra': .* another version"),
        (lambda m: m["meta"]["config"].pop("path"), "config lacks 'path': .* another version"),
        (lambda m: m["meta"]["data"].update(zebra=1), "data has the unknown key 'zebra': .* another version"),
    ],
    ids=["format", "newer setting", "older setting", "newer data"],
)
def test_another_versions_checkpoint_is_refused_and_kept(
    edit: Callable[[Json], object], message: str, run: Path
) -> None:
    """Going on from an older checkpoint would replace good ones."""
    rewrite(last(run), edit)
    for use in (lambda: load_run(run), lambda: train(Config(**SETTINGS, out=run, resume=True))):
        with warnings.catch_warnings(record=True) as caught, pytest.raises(UnsupportedCheckpointError, match=message):
            use()
        assert not caught
    assert last(run).exists()


def test_a_run_from_before_the_dits_options_goes_on(run: Path, whole: Path) -> None:
    for folder in (run / "checkpoints").iterdir():
        rewrite(folder, lambda m: [m["meta"]["config"].pop(name) for name in ("norm", "rope", "mlp")])
    restored = load_run(run)
    assert (restored.config.norm, restored.config.rope, restored.config.mlp) == ("layer", False, "gelu")
    train(Config(**{**SETTINGS, "steps": 4}, out=run, resume=True))
    train(Config(**{**SETTINGS, "steps": 4}, out=whole.with_name("longer")))
    assert_same_run(run, whole.with_name("longer"))


def test_a_failed_restore_leaves_nothing_behind(run: Path) -> None:
    """Every checkpoint is refused for its optimizer, which is restored last."""
    for folder in (run / "checkpoints").iterdir():
        LIES_OF_THE_TRAINING["a moment left out"](folder)
    with pytest.warns(RuntimeWarning), pytest.raises(DamagedCheckpointError, match="every checkpoint"):
        train(Config(**SETTINGS, out=run, resume=True))


def test_a_run_folder_may_move_and_a_checkpoint_may_not(run: Path) -> None:
    moved = run.rename(run.with_name("moved"))
    assert load_run(moved).step == 3
    last(moved).rename(moved / "checkpoints" / "step_00000009")
    with pytest.warns(RuntimeWarning, match="step_00000009/manifest.json: its step is 3"):
        assert load_run(moved).step == 2


def test_every_bit_of_a_checkpoint_counts(run: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for file in last(run).iterdir():
        content = file.read_bytes()
        for position in torch.randint(8 * len(content), (60,), generator=generator).tolist():
            flipped = bytearray(content)
            flipped[position // 8] ^= 1 << position % 8
            file.write_bytes(flipped)
            if file.name == "manifest.json" and flipped.lower() == content.lower():
                continue  # 1E-05 is 1e-05
            with pytest.raises(DamagedCheckpointError):
                load_checkpoint(last(run))
        file.write_bytes(content)
    assert newest(run).step == 3
