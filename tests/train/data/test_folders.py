"""The images of a folder and their classes."""

import os
import unicodedata
from pathlib import Path

import pytest

from fastflow.train.data import load_data
from fastflow.train.data.folders import list_images


def fill(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"content")
    return root


def listed(root: Path) -> tuple[list[str], tuple[str, ...], list[int] | None]:
    files, names, classes = list_images(root)
    return [file.relative_to(root).as_posix() for file in files], names, classes


def refusal(root: Path) -> str:
    with pytest.raises(ValueError, match=str(root)) as caught:
        list_images(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_systems_and_tools_leave_behind_is_no_class(tmp_path: Path) -> None:
    junk = (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".git", ".cache", "__pycache__", "lost+found", "$RECYCLE.BIN")
    fill(tmp_path, "cat/b.png", "cat/a.JPG", "dog/deep/c.jpeg", "dog/d.png", *(f"{name}/x.png" for name in junk))
    fill(tmp_path, "cat/.ipynb_checkpoints/a-checkpoint.png", "dog/__MACOSX/._d.png", "cat/._a.jpg", "dog/@eaDir/d.jpg")
    fill(tmp_path, "Thumbs.db", ".DS_Store", "cat/Thumbs.db", "cat/desktop.ini", "cat/notes.txt", "README.md", "x.csv")
    assert listed(tmp_path) == (
        ["cat/a.JPG", "cat/b.png", "dog/d.png", "dog/deep/c.jpeg"],
        ("cat", "dog"),
        [0, 0, 1, 1],
    )


def test_hidden_folder_as_the_data_itself(tmp_path: Path) -> None:
    assert listed(fill(tmp_path / ".cache" / "set", "a.png"))[0] == ["a.png"]


def test_folder_without_classes(tmp_path: Path) -> None:
    fill(tmp_path, "b.png", "a.webp", "masks/readme.txt")
    assert listed(tmp_path) == (["a.webp", "b.png"], (), None)


@pytest.mark.parametrize("flat", ["val/b.png", "val/cat/b.png"])
def test_root_of_splits_and_classes_names_the_folder_to_pass(flat: str, tmp_path: Path) -> None:
    fill(tmp_path, "train/cat/a.png", "train/dog/a.png", flat)
    message = refusal(tmp_path)
    assert f"{tmp_path / 'train'} holds folders of images and no images" in message
    assert message.endswith(f"the data is {tmp_path / 'train'}")
    assert listed(tmp_path / "train")[1] == ("cat", "dog")


@pytest.mark.parametrize("names", [("train", "val"), ("Train", "TEST", "valid"), ("training",)])
def test_splits_are_no_classes(names: tuple[str, ...], tmp_path: Path) -> None:
    fill(tmp_path, *(f"{name}/a.png" for name in names))
    assert "which are no classes: the data is one of them" in refusal(tmp_path)


def test_a_split_name_beside_real_classes_is_a_class(tmp_path: Path) -> None:
    assert listed(fill(tmp_path, "train/a.png", "bus/a.png"))[1] == ("bus", "train")


def test_links_are_followed(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", "cats/a.png", "loose/b.png")
    root = fill(tmp_path / "root", "dog/c.png")
    os.symlink(elsewhere / "cats", root / "cat")
    os.symlink(elsewhere / "loose" / "b.png", root / "dog" / "d.png")
    assert listed(root) == (["cat/a.png", "dog/c.png", "dog/d.png"], ("cat", "dog"), [0, 1, 1])
    os.symlink(root, tmp_path / "alias")
    assert listed(tmp_path / "alias")[1] == ("cat", "dog")


def test_loops_and_broken_links_are_refused(tmp_path: Path) -> None:
    for name, target in (("cat/up", ".."), ("cat/self", "../cat")):
        root = fill(tmp_path / name.replace("/", "_"), "cat/a.png")
        os.symlink(target, root / name)
        assert "is a link to a folder that contains it" in refusal(root)
    root = fill(tmp_path / "broken", "cat/a.png")
    os.symlink("nowhere.png", root / "cat" / "b.png")
    assert refusal(root).endswith(f"{root / 'cat' / 'b.png'}: a broken link")
    root = fill(tmp_path / "gone", "cat/a.png")
    os.symlink("/no/such/folder", root / "dog")
    assert refusal(root) == f"{root / 'dog'} is a broken link"
    root = fill(tmp_path / "ouroboros", "cat/a.png")
    os.symlink("dog", root / "dog")
    assert "broken link" in refusal(root)


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    os.mkfifo(fill(tmp_path, "cat/a.png") / "cat" / "b.png")
    assert refusal(tmp_path).endswith("not a regular file")


def test_empty_class_is_refused(tmp_path: Path) -> None:
    (fill(tmp_path, "dog/a.png") / "cat").mkdir()
    assert f"the class folder {tmp_path / 'cat'} holds no images" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("one", "other"), [("Cat", "cat"), (unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é"))]
)
def test_names_that_differ_only_in_case_are_refused(one: str, other: str, tmp_path: Path) -> None:
    fill(tmp_path, f"{one}/a.png", f"{other}/a.png")
    if len(os.listdir(tmp_path)) == 1:
        pytest.skip("this file system does not tell them apart")
    assert "differ only in case or encoding" in refusal(tmp_path)


@pytest.mark.parametrize("suffix", [".heic", ".PSD", ".jxl", ".svg"])
def test_images_that_cannot_be_read_are_not_left_out(suffix: str, tmp_path: Path) -> None:
    fill(tmp_path, "cat/a.png", f"cat/b{suffix}")
    assert f"{suffix.lower()} files are not supported, convert it to .png" in refusal(tmp_path)


def test_a_folder_may_look_like_an_image(tmp_path: Path) -> None:
    assert listed(fill(tmp_path, "set.png/a.png", "b/c.png"))[1] == ("b", "set.png")


def test_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root every folder can be read, so the refusal of the system is simulated."""
    fill(tmp_path, "cat/a.png", "dog/a.png")
    scandir = os.scandir

    def refused(path: Path):
        if Path(path).name == "dog":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(PermissionError, match="dog"):
        list_images(tmp_path)


def test_fingerprint_of_a_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    for name in ("a/x.png", "b/y.png"):
        (tmp_path / name).parent.mkdir()
        image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / name)
    first = load_data(str(tmp_path), image_size=4).spec
    assert load_data(str(tmp_path), image_size=4).spec == first
    image.new("RGB", (4, 4), (9, 9, 8)).save(tmp_path / "b" / "y.png")
    second = load_data(str(tmp_path), image_size=4).spec
    (tmp_path / "b" / "y.png").rename(tmp_path / "b" / "z.png")
    third = load_data(str(tmp_path), image_size=4).spec
    assert len({first, second, third}) == 3


def test_grey_and_colour_in_one_folder(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    image.new("L", (4, 4), 51).save(tmp_path / "a.png")
    image.new("RGB", (4, 4), (0, 51, 102)).save(tmp_path / "b.png")
    x = load_data(str(tmp_path), image_size=2).samples.x
    assert (255 * x[:, :, 0, 0]).round().tolist() == [[51, 51, 51], [0, 51, 102]]
