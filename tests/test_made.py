"""What this start has made, and directories that others remove meanwhile."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mwa_lightning.made import in_directory, is_made, make_directory, note_made, remove_made
from mwa_lightning.system.whole_files import whole_file

# Makes a file in directories that others remove, and removes what it has made, as they do.
MAKE_AND_TIDY = """
import contextlib, os, sys
from pathlib import Path
from mwa_lightning.made import in_directory
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


def rewritten(path: Path) -> None:
    path.write_text("somebody's")


def replaced(path: Path) -> None:
    path.unlink()
    path.write_text("somebody's")


def linked(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def beside(path: Path) -> None:
    (path.parent / "within").mkdir()
    (path.parent / "within" / "notes").write_text("somebody's")


def within(path: Path) -> None:
    (path.parent / "folder" / ".notes").touch()


def empty_beside(path: Path) -> None:
    (path.parent / "mine").mkdir()


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A directory with a whole file, a log and a directory that this start has made, and a lock."""
    (tmp_path / ".lock").touch()
    make_directory(tmp_path / "folder")
    with whole_file(tmp_path / "figures") as file:
        file.write(b"42")
    with (tmp_path / "log").open("a") as log:
        note_made(tmp_path / "log", grows=True)
        log.write("begun")
    return tmp_path


def test_remove_made__all_of_it(made: Path) -> None:
    with (made / "log").open("a") as log:
        log.write("went on")
    assert remove_made(made, but=made / ".lock")
    assert [path.name for path in made.iterdir()] == [".lock"]


@pytest.mark.parametrize("disturb", [rewritten, replaced, linked, beside, within, empty_beside])
def test_remove_made__nothing_where_somebody_has_been(disturb: Callable[[Path], None], made: Path) -> None:
    disturb(made / "figures")
    before = sorted(os.walk(made)), (made / "figures").read_bytes()
    assert not remove_made(made, but=made / ".lock")
    assert (sorted(os.walk(made)), (made / "figures").read_bytes()) == before


def test_is_made__not_of_others(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    assert not make_directory(tmp_path / "there")
    assert not is_made(tmp_path / "there")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_directory(tmp_path / "file")
