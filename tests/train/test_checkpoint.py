"""Checkpoints: exact, atomic, verified, and never unpickled."""

import errno
import json
import pickle
import resource
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastflow.train import checkpoint as module
from fastflow.train.checkpoint import (
    Checkpoint,
    DamagedCheckpointError,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from fastflow.train.errors import NonFiniteError

pytest.importorskip("safetensors")


def example(step: int) -> Checkpoint:
    torch.manual_seed(step)
    weights = {"a.weight": torch.randn(3, 4), "b": torch.randn(5, dtype=torch.float64), "n": torch.tensor(step)}
    return Checkpoint(step, {"model": weights, "optimizer": {"0.step": torch.tensor(float(step))}}, {"seed": 7})


def same(a: Checkpoint, b: Checkpoint) -> bool:
    return (
        (a.step, a.meta) == (b.step, b.meta)
        and a.tensors.keys() == b.tensors.keys()
        and all(a.tensors[g].keys() == b.tensors[g].keys() for g in a.tensors)
        and all(torch.equal(a.tensors[g][n], b.tensors[g][n]) for g in a.tensors for n in a.tensors[g])
    )


def test_what_is_saved_is_loaded_bit_for_bit(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, example(120))
    assert folder == tmp_path / "step_00000120"
    assert same(load_checkpoint(folder), example(120))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step_00000120"]


def test_non_contiguous_tensors_are_saved_as_they_look(tmp_path: Path) -> None:
    x = torch.arange(12.0).view(3, 4).T
    folder = save_checkpoint(tmp_path, Checkpoint(0, {"model": {"x": x}}, {}))
    assert torch.equal(load_checkpoint(folder).tensors["model"]["x"], x)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 50, 500, 5000):
        save_checkpoint(tmp_path, example(step), keep=2)
    assert [f.name for f in list_checkpoints(tmp_path)] == ["step_00005000", "step_00000500"]


def test_newest_is_by_number_not_by_name(tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        save_checkpoint(tmp_path, example(step))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 100_000_000


def steps(root: Path) -> list[int]:
    return [int(folder.name[5:]) for folder in list_checkpoints(root)]


def test_damaged_checkpoints_are_neither_counted_nor_deleted(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, example(step))
    _flip(tmp_path / "step_00000003" / "model.safetensors", -1)
    save_checkpoint(tmp_path, example(4), keep=2)
    assert steps(tmp_path) == [4, 3, 2]
    _flip(tmp_path / "step_00000002" / "model.safetensors", -1)  # valid when it was last looked at
    save_checkpoint(tmp_path, example(5), keep=3)
    assert steps(tmp_path) == [5, 4, 3, 2]


@pytest.mark.parametrize("damaged", [False, True])
def test_later_checkpoints_are_not_counted(damaged: bool, tmp_path: Path) -> None:
    """As after a run went on from an older checkpoint."""
    for step in (1, 2, 9):
        save_checkpoint(tmp_path, example(step))
    if damaged:
        _flip(tmp_path / "step_00000009" / "model.safetensors", -1)
    save_checkpoint(tmp_path, example(3), keep=1)
    assert steps(tmp_path) == [9, 3]


def test_foreign_entries_are_left_alone(tmp_path: Path) -> None:
    names = ["step_7", "step_00000001_copy", "step_x", "step_²", ".step_notes", "notes", f"step_{'9' * 200}"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    (tmp_path / "step_00000000").touch()
    target = save_checkpoint(tmp_path / "elsewhere", example(2))
    (tmp_path / "step_00000002").symlink_to(target)
    for step in (1, 3, 4):
        save_checkpoint(tmp_path, example(step), keep=1)
    assert all((tmp_path / name / "mine").exists() for name in names)
    assert (tmp_path / "step_00000000").exists()
    assert (tmp_path / "step_00000002").is_symlink()
    assert same(load_checkpoint(target), example(2))
    assert not (tmp_path / "step_00000001").exists()


def test_a_reader_sees_the_newer_checkpoint_when_its_own_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `fastflow sample` during a training that keeps one checkpoint."""
    save_checkpoint(tmp_path, example(1))
    original = module._sha256

    def meanwhile(file: Path) -> str:
        monkeypatch.undo()
        save_checkpoint(tmp_path, example(2), keep=1)
        return original(file)

    monkeypatch.setattr(module, "_sha256", meanwhile)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert same(newest, example(2))


@pytest.mark.parametrize("group", ["model", "ema", "optimizer"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_never_saved(group: str, value: float, tmp_path: Path) -> None:
    good = save_checkpoint(tmp_path, example(1))
    later = save_checkpoint(tmp_path, example(2))
    _flip(later / "model.safetensors", -1)
    tensors = {g: {"a": torch.ones(3), "n": torch.tensor(1)} for g in ("model", "ema", "optimizer")}
    tensors[group]["b"] = torch.tensor([1.0, value], dtype=torch.bfloat16)
    with pytest.raises(NonFiniteError, match=f"^{group}: b is not finite at step 3; last good checkpoint: {good}$"):
        save_checkpoint(tmp_path, Checkpoint(3, tensors, {}))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


@pytest.mark.parametrize("name", [None, "model.safetensors", "optimizer.safetensors", "manifest.json"])
def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(name: str | None, tmp_path: Path) -> None:
    """No file may have more bytes than this one, less one."""
    first = save_checkpoint(tmp_path, example(1))
    limit = (first / name).stat().st_size - 1 if name else 0
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save_checkpoint(tmp_path, example(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(raised.value.filename).startswith(str(tmp_path / ".step_00000002"))
    assert raised.value.errno == errno.EFBIG
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step_00000001"]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert same(newest, example(1))


@pytest.mark.parametrize("code", [errno.EMFILE, errno.EACCES, errno.ENOMEM])
def test_a_file_that_cannot_be_opened_now_is_not_damaged(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Going on from an older checkpoint would hide it."""
    for step in (1, 2):
        save_checkpoint(tmp_path, example(step))

    def refuse(file: Path) -> str:
        raise OSError(code, "refused", str(file))

    monkeypatch.setattr(module, "_sha256", refuse)
    with pytest.raises(OSError, match="refused"):
        newest_checkpoint(tmp_path)


def _flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit in a tensor": lambda f: _flip(f / "model.safetensors", -1),
    "a truncated file": lambda f: (f / "optimizer.safetensors").write_bytes(b""),
    "a missing file": lambda f: (f / "optimizer.safetensors").unlink(),
    "a missing manifest": lambda f: (f / "manifest.json").unlink(),
    "a truncated manifest": lambda f: (f / "manifest.json").write_text('{"step": 2'),
    "a manifest of another type": lambda f: (f / "manifest.json").write_text("[]"),
    "an edited manifest": lambda f: (f / "manifest.json").write_text(
        (f / "manifest.json").read_text().replace('"seed": 7', '"seed": 8')
    ),
    "an empty folder": lambda f: [file.unlink() for file in f.iterdir()] and None,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_damaged_checkpoint_is_skipped_and_named(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save_checkpoint(tmp_path, example(1))
    damage(save_checkpoint(tmp_path, example(2)))
    with pytest.warns(RuntimeWarning, match="step_00000002"):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert same(newest, example(1))


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path) -> None:
    (save_checkpoint(tmp_path, example(1)) / "manifest.json").unlink()
    with pytest.warns(RuntimeWarning), pytest.raises(DamagedCheckpointError, match="every checkpoint"):
        newest_checkpoint(tmp_path)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "absent") is None


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    DAMAGE["a truncated file"](save_checkpoint(tmp_path, example(3)))
    save_checkpoint(tmp_path, example(3))
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert same(newest, example(3))


@pytest.mark.parametrize("calls_before_crash", range(5))
def test_a_crash_while_saving_leaves_the_last_checkpoint(
    calls_before_crash: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The power fails at each fsync in turn; the one after the rename comes too late to lose anything."""
    save_checkpoint(tmp_path, example(1))
    fsync, calls = module._fsync, 0

    def failing(path: Path) -> None:
        nonlocal calls
        if calls == calls_before_crash:
            raise OSError("power failure")
        calls += 1
        fsync(path)

    monkeypatch.setattr(module, "_fsync", failing)
    with pytest.raises(OSError, match="power failure"):
        save_checkpoint(tmp_path, example(2))
    monkeypatch.undo()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert same(newest, example(2 if calls_before_crash == 4 else 1))
    save_checkpoint(tmp_path, example(2))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["step_00000001", "step_00000002"]


def test_everything_is_synced_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    final = tmp_path / "step_00000001"
    monkeypatch.setattr(module, "_fsync", lambda path: synced.append((path.name, final.exists())))
    save_checkpoint(tmp_path, example(1))
    names = ["model.safetensors", "optimizer.safetensors", "manifest.json", ".step_00000001"]
    assert synced == [*((name, False) for name in names), (tmp_path.name, True)]


def test_a_pickle_in_place_of_tensors_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with a matching manifest."""
    folder = save_checkpoint(tmp_path, example(1))
    (folder / "model.safetensors").write_bytes(pickle.dumps({"x": 1}))
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["files"]["model.safetensors"]
    entry["bytes"] = (folder / "model.safetensors").stat().st_size
    entry["sha256"] = module._sha256(folder / "model.safetensors")
    del manifest["sha256"]
    manifest["sha256"] = module._manifest_sha256(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))

    def explode(*args: object, **kwargs: object) -> None:
        raise AssertionError("unpickled")

    monkeypatch.setattr(pickle, "load", explode)
    monkeypatch.setattr(pickle, "loads", explode)
    with pytest.raises(DamagedCheckpointError, match=r"model\.safetensors"):
        load_checkpoint(folder)
