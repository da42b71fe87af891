"""Whole files: what stays where something fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from mwa_lightning.errors import StorageError
from mwa_lightning.made import start_token
from mwa_lightning.system.whole_files import temporaries, whole_file


def test_whole_file__takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert temporaries(tmp_path, start_token()) == [Path(file.name)]
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError()], ids=repr)
def test_whole_file__that_fails_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "figures.json"
    path.write_bytes(b"old")
    with pytest.raises(type(error)):
        _half_write(path, error)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_whole_file__on_a_disk_that_is_full(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_bytes(b"old")
    with pytest.raises(StorageError, match=rf"^{path} cannot be written \(No space left on device\)\. What was saved"):
        _half_write(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def _half_write(path: Path, error: BaseException) -> None:
    with whole_file(path) as file:
        file.write(b"ne")
        raise error
