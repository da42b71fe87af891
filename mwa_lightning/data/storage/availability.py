"""Whether the disk that a data set lies on can be read, and is still there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mwa_lightning.errors import DataError


@contextmanager
def readable(what: object = "the data set") -> Iterator[None]:
    """Turns what the disk says into a DataError that names the file, or `what` is read where the disk does not."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or what} cannot be read ({error.strerror}): mend that") from error


@dataclass(frozen=True)
class Storage:
    """Tells a picture that is bad from a disk that is lost: with the disk, more goes than a picture.

    Args:
        files: What the data set cannot be without: its annotations.
        folder: Where its images lie; a mount that is lost leaves an empty folder, or none.
    """

    files: Sequence[Path]
    folder: Path

    def problem(self) -> str:
        """What has gone since the run began, as a line for people; empty while all is there."""
        try:
            for file in self.files:
                os.stat(file)  # noqa: PTH116 (says why it fails)
            with os.scandir(self.folder) as entries:
                if next(entries, None) is not None:
                    return ""
            gone, reason = self.folder, "it is empty now"
        except OSError as error:
            gone, reason = Path(error.filename), str(error.strerror)
        return (
            f"the data at {gone} has gone while it was used ({reason}): bring its disk back, and start the same "
            "command again (a training run with this run_dir, to resume from its last checkpoint)"
        )
