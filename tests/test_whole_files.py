"""Whole files and directories: what stays where something fails, and what others remove meanwhile."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mwa_lightning.errors import StorageError
from mwa_lightning.whole_files import in_directory, is_left_behind, whole_file

# Makes a file in directories that others remove, and removes what it has made, as they do.
MAKE_AND_TIDY = """
import contextlib, os, sys
from pathlib import Path
from mwa_lightning.whole_files import in_directory
directory = Path(sys.argv[1], "a", "b", "c")
for _ in range(500):
    path = directory / str(os.getpid())
    in_directory(directory, path.touch)
    path.unlink()
    with contextlib.suppress(OSError):
        for parent in (directory, *directory.parents[:2]):
            parent.rmdir()
"""


def test_in_directory__says_what_is_new(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    directory = tmp_path / "there" / "new" / "newer"
    path = directory / "file"
    assert in_directory(directory, lambda: path.write_text("4 bytes")) == (7, [directory, directory.parent])
    assert in_directory(directory, path.read_text) == ("4 bytes", [])


def test_in_directory__which_another_process_removes(tmp_path: Path) -> None:
    """What is new is what the last try has made."""
    directory = tmp_path / "new" / "newer"
    removals = iter([directory, tmp_path / "new"])

    def make() -> str:
        if (path := next(removals, None)) is not None:
            shutil.rmtree(path)
        (directory / "file").touch()
        return "made"

    assert in_directory(directory, make) == ("made", [directory, tmp_path / "new"])


def test_in_directory__with_many_that_tidy_up(tmp_path: Path) -> None:
    processes = [subprocess.Popen([sys.executable, "-c", MAKE_AND_TIDY, tmp_path]) for _ in range(4)]
    assert [process.wait(timeout=200) for process in processes] == [0, 0, 0, 0]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [FileNotFoundError, FileExistsError])
def test_in_directory__that_never_comes_about(tmp_path: Path, error: type[OSError]) -> None:
    tries = []

    def make() -> None:
        tries.append(1)
        raise error

    with pytest.raises(error):
        in_directory(tmp_path, make, tries=7)
    assert len(tries) == 7


def test_in_directory__below_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        in_directory(tmp_path / "file" / "new", tmp_path.exists)


def test_whole_file__takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    path.write_bytes(b"old")
    with whole_file(path) as file:
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"old"
        assert [other for other in tmp_path.iterdir() if is_left_behind(other)] == [Path(file.name)]
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
