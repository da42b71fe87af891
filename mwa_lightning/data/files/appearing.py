"""Folders that are filled as a whole: their files appear when all are written, or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mwa_lightning.made import in_directory, is_made, make_directory, note_made
from mwa_lightning.system.file_locks import LOCK, lock, others_in
from mwa_lightning.system.whole_files import flush_names, temporary


class NotEmpty(Exception):  # noqa: N818 (a state of the folder)
    """There is something in the folder already."""


class Files:
    """What is written into a folder, under temporary names until all of it is there."""

    def __init__(self, folder: Path) -> None:
        self.written: dict[str, Path] = {}
        self._folder = folder
        self._made: list[Path] = []  # under their own names, with the folders for them

    def open(self, name: str) -> BinaryIO:
        """A file to write to, of a name relative to the folder."""
        path = self.written[name] = temporary(self._folder / str(len(self.written)))
        return path.open("xb")

    def write(self, name: str, content: bytes) -> None:
        with self.open(name) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())

    def appear(self) -> None:
        """Give the files their names, in the order in which they were written."""
        *others, last = self.written
        for name in others:
            self._name(name)
        for folder in {path.parent for path in self._made}:
            flush_names(folder)
        self._name(last)
        flush_names(self._folder)

    def remove(self) -> None:
        for path in self.written.values():
            path.unlink(missing_ok=True)
        for path in filter(is_made, reversed(self._made)):
            path.rmdir() if path.is_dir() else path.unlink()

    def _name(self, name: str) -> None:
        path = self._folder / name
        folders = [each for each in path.parents if self._folder in each.parents]
        self._made += [folder for folder in reversed(folders) if make_directory(folder)]
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, f"{name} has come into it meanwhile")
        note_made(path, as_it_is=self.written[name])
        self._made.append(path)
        self.written[name].rename(path)


@contextmanager
def appearing(folder: Path) -> Iterator[Files]:
    """Files to be written into a folder, which is made if it is missing; one process at a time does that.

    What a killed process has left of its own is cleared away first. If this one fails, what it has made is.

    Raises:
        Taken: Another process is at it.
        NotEmpty: There is something else in the folder.
        OSError: It cannot be made, or not all files could get their names.
    """
    held, made = in_directory(folder, lambda: lock(folder / LOCK))
    files = Files(folder)
    try:
        if others_in(folder, held):
            raise NotEmpty
        held.begin(folder)
        yield files
        files.appear()
    except BaseException:
        with suppress(OSError):
            files.remove()
        raise
    else:
        made = []
    finally:
        held.release()
        with suppress(OSError):
            for directory in made:
                directory.rmdir()
