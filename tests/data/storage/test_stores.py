"""Files as they are: what there is, and what there is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mwa_lightning.data.storage.stores import PictureFolder


def test_folder__files_folders_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "a.png").write_bytes(b"12345")
    (tmp_path / "empty.png").write_bytes(b"")
    store = PictureFolder(tmp_path)
    assert (store.folder, store.prefix, list(store.files)) == (tmp_path, tmp_path, [])
    paths = [os.fspath(store.prefix / name) for name in ("dev/a.png", "empty.png", "none.png", "dev", "dev/a.png/b")]
    assert [store.size(path) for path in paths] == [5, 0, None, None, None]
    assert store.open(paths[0]).read() == b"12345"
    with pytest.raises(FileNotFoundError):
        store.open(paths[2])
    (tmp_path / ".thumbs").mkdir()
    (tmp_path / ".thumbs" / "a.png").write_bytes(b"1")
    (tmp_path / "dev" / "again").symlink_to(tmp_path)  # a loop
    assert sorted(store.paths()) == ["dev/a.png", "empty.png"]
    assert list(store.damage(thorough=True)) == []
