"""Files are opened only if they are files: a named pipe has whoever opens it wait for ever, a device never ends.

What is no file is an OSError that says what it is, as the system's own say why they cannot open one.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class NotAFile(OSError):  # noqa: N818 (what it is)
    """A path names something else than a file; `strerror` says what."""

    def __init__(self, path: str | Path, mode: int) -> None:
        what = _KINDS.get(stat.S_IFMT(mode), "something else")
        super().__init__(errno.EINVAL, f"it is {what}, not a file", os.fspath(path))


def open_descriptor(path: str | Path, flags: int) -> int:
    """Open a file or a folder, without waiting for whoever may write to a pipe. Raises NotAFile or OSError."""
    number = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    mode = os.fstat(number).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        os.close(number)
        raise NotAFile(path, mode)
    return number


def open_file(path: str | Path) -> BufferedReader:
    """Open a file to be read, or a link to one. Raises NotAFile, or OSError if it cannot be opened."""
    try:
        return open(path, "rb", opener=open_descriptor)
    except OSError as error:
        if error.errno == errno.ENXIO:  # what a socket, and a device without a driver, say
            require_file(path)
        raise
    except ValueError as error:  # a path with a NUL in it
        raise FileNotFoundError(errno.ENOENT, f"no file can have this name: {error}", os.fspath(path)) from error


def read_file(path: str | Path) -> bytes:
    """The content of a file. Raises NotAFile, or OSError if it cannot be read."""
    with open_file(path) as file:
        return file.read()


def require_file(path: str | Path) -> None:
    """For a library that opens the file itself. Raises NotAFile; of a folder or of nothing the library tells."""
    mode = os.stat(path).st_mode  # noqa: PTH116 (also of a str)
    if stat.S_IFMT(mode) in _KINDS:
        raise NotAFile(path, mode)
