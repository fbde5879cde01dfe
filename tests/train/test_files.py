"""Files that a crash leaves whole."""

import errno
from pathlib import Path

import pytest

from fastflow.train.files import replace_text, replacing


def test_a_write_that_fails_keeps_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "samples.npz"
    file.write_bytes(b"old")

    def fill() -> None:
        with replacing(file) as partial:
            partial.write_bytes(b"half")
            assert partial.suffix == ".npz"
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match=r"samples"):
        fill()
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_link_keeps_its_target_up_to_date(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    replace_text(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"
