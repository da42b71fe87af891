"""Files that are whole or not there: written under a temporary name, flushed to the disk, renamed; their checksums.

And directories to write them in, where other processes remove those that they leave empty.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TypeVar

from mwa_lightning.errors import StorageError
from mwa_lightning.regular_files import open_file

T = TypeVar("T")


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` once it is complete; until then the old one stays.

    Raises StorageError if it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with writing(path):
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            flush_names(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns the failure of writing `path` into a StorageError that names it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save says that its file came out wrong, and keeps what the disk said as the cause.
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise StorageError(
            f"{path} cannot be written ({reason.strerror or reason}). What was saved before is whole: mend that, and "
            "start the same command with this run_dir again"
        ) from error


def in_directory(directory: Path, make: Callable[[], T], *, tries: int = 100) -> tuple[T, list[Path]]:
    """Make a directory, with those above it, and what `make` makes in it.

    Another process that tidies up after itself may just have removed one of them, empty as it was: then once more.

    Returns:
        What `make` has returned, and the directories that were not there before, the innermost first.

    Raises:
        OSError: They cannot be made.
    """
    new = [path for path in (directory, *directory.parents) if not path.exists()]
    try:
        directory.mkdir(parents=True, exist_ok=True)
        return make(), new
    except (FileNotFoundError, FileExistsError):
        if tries == 1:
            raise
        return in_directory(directory, make, tries=tries - 1)


def flush_names(directory: Path) -> None:
    """Flush the names in a directory to the disk, so that a renamed file is found after a loss of power."""
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError if it cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_left_behind(path: Path) -> bool:
    """Whether a file is a temporary one of ours, left by a process that was killed."""
    name, _, process = path.name.rpartition(".")
    return name.startswith(".") and process.isdigit() and path.is_file()
