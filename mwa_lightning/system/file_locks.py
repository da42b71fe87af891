"""Locks on files: one process at a time, and a dead one keeps nobody out.

Record locks (`fcntl.lockf`), which the kernel lets go when their process ends, however it ends: nothing that a dead
process leaves has to be found out and cleared away. Network file systems pass such locks on to their server, which
lets go of those of a machine that has died. Unlike `flock`, forked processes that read data do not hold them too, and
so cannot outlive their parent with them.

In the file a holder leaves word of itself, with the token in its temporary names: so the next one knows which of these
a killed one has left. A file of that name that somebody else has made is locked too, but neither written nor removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from mwa_lightning.made import start_token
from mwa_lightning.system.regular_files import open_descriptor, open_file
from mwa_lightning.system.whole_files import temporaries, temporary

log = logging.getLogger(__name__)

LOCK = ".lock"  # the name that it has in every folder of ours

_TAKEN = (errno.EACCES, errno.EAGAIN)
_TOKEN = "token"
_LONGEST = 4096
# A lock that another process is just making (see `_made`): it counts as nothing, and is never removed.
_BEFORE = re.compile(rf"\.{re.escape(LOCK)}\.[0-9a-f]{{16}}")


class Taken(Exception):  # noqa: N818 (a state of the file)
    """Another process holds the lock; `about` is what it has left word of in the file, if anything."""

    def __init__(self, about: dict[str, Any] | None = None) -> None:
        self.about = about or {}


class Held:
    """The file of a lock that this process holds.

    Args:
        path: Its name.
        file: Its descriptor, which keeps the lock while it is open.
        made: Whether this process has made it.
    """

    def __init__(self, path: Path, file: int, *, made: bool) -> None:
        self.path = path
        self.file = file
        left = _known(_content(file))
        self._left: str | None = left.get(_TOKEN)  # of the holder before, which was killed
        self._ours = made or self._left is not None

    def begin(self, *directories: Path, **about: Any) -> None:
        """Clear away the temporary files that a killed holder has left there, then leave word of this process."""
        with contextlib.suppress(OSError):  # of a disk that is full or read-only: the work itself says so
            if self._left is not None:
                for path in [path for directory in directories for path in temporaries(directory, self._left)]:
                    path.unlink()
            if self._ours:
                word = json.dumps({**about, _TOKEN: start_token()}).encode()
                os.ftruncate(self.file, 0)
                os.pwrite(self.file, word, 0)

    def release(self, *, remove: bool = True) -> None:
        """Let the lock go; the file is removed before, so whoever has opened it meanwhile sees that it is gone."""
        with contextlib.suppress(OSError):  # of a disk that has gone
            if remove and self._ours and _is_file_of(self.path, self.file):
                self.path.unlink()
        os.close(self.file)


def lock(path: Path) -> Held:
    """Open a file, make it if it is missing, and lock it.

    A file system without locks is warned of, and taken as if nobody held any.

    Raises:
        Taken: Another process holds the lock.
        OSError: The file cannot be opened.
    """
    while True:
        file, made = open_lock(path)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                about = _known(_content(file))
                os.close(file)
                raise Taken(about) from None
            log.warning(
                "%s: this file system has no locks (%s): start no second process that writes there while one runs",
                path.parent,
                error.strerror,
            )
        if _is_file_of(path, file):
            return Held(path, file, made=made)
        os.close(file)  # its holder has removed it since


def is_taken(path: Path) -> bool:
    """Whether another process holds a lock. Not for one that this process holds: it would let go of that."""
    try:
        file = open_descriptor(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in _TAKEN
    finally:
        os.close(file)
    return False


def others_in(folder: Path, held: Held | None = None) -> list[Path]:
    """What is in a folder besides its lock, and temporary files of the start that this names, which was killed.

    Args:
        folder: May be missing.
        held: The lock, if this process holds it: it would let go of it by closing another descriptor of the file.
    """
    path = folder / LOCK
    there = list(folder.iterdir()) if folder.is_dir() else []
    there = [each for each in there if not _BEFORE.fullmatch(each.name)]
    if path not in there or path.is_symlink() or not path.is_file():
        return there
    if held is not None:
        content = _content(held.file)
    else:
        try:
            with open_file(path) as file:
                content = _content(file.fileno())
        except FileNotFoundError:  # its holder has ended since
            return others_in(folder)
    token = _known(content).get(_TOKEN)
    if token is None and content:  # of one that was killed before it left word it is empty
        return there
    left = {path, *(temporaries(folder, token) if token else ())}
    return [path for path in there if path not in left]


def open_lock(path: Path) -> tuple[int, bool]:
    """A descriptor of the file of a lock, and whether it was made, which also locks it. Raises OSError."""
    while True:
        with contextlib.suppress(FileExistsError):
            return _made(path), True
        try:
            return open_descriptor(path, os.O_RDWR), False
        except FileNotFoundError:
            if path.is_symlink():
                raise


def _made(path: Path) -> int:
    """A descriptor of a new file, which is locked before it has its name: else another process could lock it first.

    That one would hold a file that it has not made, and leave it behind. Raises FileExistsError if there is one.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_CREAT | os.O_EXCL
    new = temporary(path)
    file = os.open(new, flags, 0o666)
    try:
        with contextlib.suppress(OSError):  # of a file system without locks, which `lock` warns of
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.link(new, path)
    except OSError as error:
        os.close(file)
        if isinstance(error, FileExistsError):
            raise
        return os.open(path, flags, 0o666)  # a file system without links
    finally:
        new.unlink()
    return file


def _content(file: int) -> bytes:
    return os.pread(file, _LONGEST, 0)


def _known(content: bytes) -> dict[str, Any]:
    """What a holder has left word of; empty if it has not yet, or if that is somebody else's file."""
    with contextlib.suppress(ValueError, RecursionError):
        about = json.loads(content)
        if isinstance(about, dict):
            ours = re.fullmatch("[0-9a-f]{16}", str(about.get(_TOKEN)))
            return about if ours else {**about, _TOKEN: None}
    return {}


def _is_file_of(path: Path, file: int) -> bool:
    """Whether the name still leads to the file that was opened by it."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
