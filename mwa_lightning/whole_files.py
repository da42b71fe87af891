"""Files that are whole or not there: written under a temporary name, flushed to the disk, renamed."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mwa_lightning.errors import StorageError


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


def flush_names(directory: Path) -> None:
    """Flush the names in a directory to the disk, so that a renamed file is found after a loss of power."""
    with contextlib.suppress(OSError):  # not every file system can
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def is_left_behind(path: Path) -> bool:
    """Whether a file is a temporary one of ours, left by a process that was killed."""
    name, _, process = path.name.rpartition(".")
    return name.startswith(".") and process.isdigit() and path.is_file()
