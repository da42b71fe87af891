"""Locks on files: one process at a time, and a dead one keeps nobody out.

Record locks (`fcntl.lockf`), which the kernel lets go when their process ends, however it ends: nothing that a dead
process leaves has to be found out and cleared away. Network file systems pass such locks on to their server, which
lets go of those of a machine that has died. Unlike `flock`, forked processes that read data do not hold them too, and
so cannot outlive their parent with them.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_TAKEN = (errno.EACCES, errno.EAGAIN)


class Taken(Exception):  # noqa: N818 (a state of the file)
    """Another process holds the lock; `content` is what it has left word of in the file, if anything."""

    def __init__(self, content: bytes) -> None:
        self.content = content


def lock(path: Path) -> int:
    """Open a file, make it if it is missing, and lock it; returns its descriptor, which keeps the lock while open.

    A file system without locks is warned of, and taken as if nobody held any.

    Raises:
        Taken: Another process holds the lock.
        OSError: The file cannot be opened.
    """
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _TAKEN:
                content = os.pread(file, 4096, 0)
                os.close(file)
                raise Taken(content) from None
            log.warning(
                "%s: this file system has no locks (%s): start no second process that writes there while one runs",
                path.parent,
                error.strerror,
            )
        if _is_file_of(path, file):
            return file
        os.close(file)  # its holder has removed it since


def remove(path: Path, file: int) -> None:
    """Remove a locked file before its lock is let go: whoever has opened it meanwhile sees that it is gone."""
    if _is_file_of(path, file):
        path.unlink()


def _is_file_of(path: Path, file: int) -> bool:
    """Whether the name still leads to the file that was opened by it."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False
