"""Where the bytes of pictures come from: files in a folder here, shards in `shards`."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import BinaryIO

from mwa_lightning.data.files.long_work import Follow, unseen
from mwa_lightning.data.storage.suggestions import picture_meant
from mwa_lightning.errors import DataError
from mwa_lightning.system.regular_files import open_file


class DamagedShard(DataError):  # noqa: N818 (a state of the storage)
    """Bytes that are not those that were stored: the storage is at fault, so no other picture stands in."""


class MissingImage(DataError):  # noqa: N818 (a state of the data set)
    """There is no picture of this name."""


class PictureStore(ABC):
    """Gives the bytes of pictures by their paths; may be used by many threads, and sent to other processes.

    A picture's path is `prefix` joined with what the annotations say.
    """

    data_root: Path | None = None  # folder of the data set, where its images are files

    @property
    @abstractmethod
    def folder(self) -> Path:
        """Where it lies; a mount that is lost leaves an empty folder, or none."""

    @property
    @abstractmethod
    def prefix(self) -> PurePath:
        """What the paths in the annotations start from."""

    @property
    def files(self) -> Sequence[Path]:
        """Files besides the pictures that it cannot be without."""
        return ()

    @abstractmethod
    def open(self, path: str) -> BinaryIO:
        """The bytes of a picture.

        Raises:
            OSError: It is no file, or may not be read.
            MissingImage: The store lacks it.
            DamagedShard: It has damaged bytes.
        """

    @abstractmethod
    def size(self, path: str) -> int | None:
        """Number of bytes of a picture; None if there is none."""

    @abstractmethod
    def paths(self) -> Iterator[str]:
        """The paths of all pictures, and of what else lies among them, from `prefix` on."""

    def lies_outside(self, path: str) -> bool:
        """Whether a picture is a file elsewhere, which the annotations or a link lead to."""
        return False

    def describe(self, path: str) -> str:
        """A picture's path for people, who may want to look at it."""
        return path

    def meant(self, path: str) -> str | None:
        """The picture that is probably meant by the path of none, and what to do, as the end of a sentence."""
        return None

    def damage(self, *, thorough: bool, follow: Follow = unseen) -> Iterator[str]:
        """What is missing or cut short, a line for each; `thorough` reads all, and finds what has other bytes."""
        return iter(())


@dataclass(frozen=True)
class PictureFolder(PictureStore):
    """Files as they are; paths may also lead elsewhere.

    Args:
        root: Folder of the pictures.
        data_root: Folder of the data set, where that is another.
    """

    root: Path = Path()
    data_root: Path | None = None

    @property
    def folder(self) -> Path:
        return self.root

    @property
    def prefix(self) -> PurePath:
        return self.root

    def meant(self, path: str) -> str | None:
        """The picture near it that is there."""
        return picture_meant(path, self.root, self.data_root)

    def open(self, path: str) -> BinaryIO:
        """The file. Raises OSError if it cannot be opened."""
        return open_file(path)

    def size(self, path: str) -> int | None:
        """Its number of bytes; None if it is no file."""
        try:
            status = os.stat(path)  # noqa: PTH116
        except (OSError, ValueError):  # a name that no file can have
            return None
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def lies_outside(self, path: str) -> bool:
        """Whether a file lies neither in the folder of the pictures nor in that of the data set."""
        where = Path(os.path.realpath(path))
        return not any(where.is_relative_to(folder) for folder in self._real_folders)

    @cached_property
    def _real_folders(self) -> list[Path]:
        return [Path(os.path.realpath(folder)) for folder in (self.root, self.data_root) if folder is not None]

    def paths(self) -> Iterator[str]:
        """The files in the folder and all below, but for hidden folders; links are followed, each folder once."""
        seen: set[str] = set()
        for folder, below, names in os.walk(self.root, followlinks=True):
            if (real := os.path.realpath(folder)) in seen:
                below.clear()
                continue
            seen.add(real)
            below[:] = sorted(name for name in below if not name.startswith("."))
            inside = os.path.relpath(folder, self.root)
            yield from (os.path.normpath(os.path.join(inside, name)) for name in names)  # noqa: PTH118
