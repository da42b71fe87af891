"""What this start of a command has made: nothing else is ever removed again, whatever it is called.

A name proves nothing. What is made is noted with its identity, and what may have to be cleared away by a later start,
should this one be killed, holds a random token in its name.
"""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# By absolute path, without following links: device, number and type; of a file that was written whole, also size and
# time of its last change.
_made: dict[str, tuple[int, ...]] = {}
_GROWS = 3


def start_token() -> str:
    """What tells this start of a command from all others."""
    return _token(os.getpid())


@functools.cache
def _token(process: int) -> str:
    return secrets.token_hex(8)


def note_made(path: Path, *, as_it_is: Path | None = None, grows: bool = False) -> None:
    """Note that this start has made a file or a directory, which may still have another name.

    A file that `grows` stays the same while it does.
    """
    with contextlib.suppress(OSError):
        _made[_name(path)] = _identity(as_it_is or path, grows=grows)


def is_made(path: Path) -> bool:
    """Whether this start has made what is there, and nobody has put something else in its place."""
    noted = _made.get(_name(path))
    try:
        return noted is not None and _identity(path, grows=len(noted) == _GROWS) == noted
    except OSError:
        return False


def remove_made(directory: Path, *, but: Path) -> bool:
    """Remove what is in a directory, if this start has made all of it `but` one file; whether it has."""
    below = [Path(place, name) for place, folders, files in os.walk(directory) for name in (*folders, *files)]
    below = sorted((path for path in below if path != but), reverse=True)  # what is in a directory comes before it
    if not all(map(is_made, below)):
        return False
    for path in below:
        path.rmdir() if path.is_dir() else path.unlink()
    return True


def in_directory(directory: Path, make: Callable[[], T], *, tries: int = 100) -> tuple[T, list[Path]]:
    """Make a directory, with those above it, and what `make` makes in it.

    Another process that tidies up after itself may just have removed one of them, empty as it was: then once more.

    Returns:
        What `make` has returned, and the directories that were made for it, the innermost first.

    Raises:
        OSError: They cannot be made.
    """
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        new = [path for path in reversed(missing) if make_directory(path)]
        return make(), new[::-1]
    except (FileNotFoundError, FileExistsError):
        if tries == 1:
            raise
        made, since = in_directory(directory, make, tries=tries - 1)
        return made, [
            path for path in (directory, *directory.parents) if path in since or (path in missing and is_made(path))
        ]


def make_directory(path: Path) -> bool:
    """Make a directory; False if it was there. Raises OSError if it cannot be made, or a file is in its place."""
    try:
        path.mkdir()
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    note_made(path)
    return True


def _name(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (`absolute` leaves `..` in)


def _identity(path: Path, *, grows: bool) -> tuple[int, ...]:
    there = path.lstat()
    same = (there.st_dev, there.st_ino, stat.S_IFMT(there.st_mode))
    return same if grows or stat.S_ISDIR(there.st_mode) else (*same, there.st_size, there.st_mtime_ns)
