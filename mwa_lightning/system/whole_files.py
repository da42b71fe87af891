"""Files that are whole or not there: written under a temporary name, flushed to the disk, renamed; their checksums."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from mwa_lightning.errors import StorageError
from mwa_lightning.made import note_made, start_token
from mwa_lightning.system.regular_files import open_file


def temporary(path: Path) -> Path:
    """The name under which this start writes a file that gets the name `path` once it is whole."""
    return path.with_name(f".{path.name}.{start_token()}")


def temporaries(directory: Path, token: str) -> list[Path]:
    """The temporary files in a directory that the start of that token has left."""
    return [path for path in directory.glob(f".*.{token}") if path.is_file() and not path.is_symlink()]


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, which takes the place of `path` once it is complete; until then the old one stays.

    Raises StorageError if it cannot be written.
    """
    unfinished = temporary(path)
    try:
        with writing(path):
            with unfinished.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            note_made(path, as_it_is=unfinished)
            unfinished.replace(path)
            flush_names(path.parent)
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


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


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises OSError if it cannot be read."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
