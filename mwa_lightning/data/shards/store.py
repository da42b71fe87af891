"""A data set as a few tar files in WebDataset's form, of which any picture can be read at once.

A folder of shards holds

- `shard-00000.tar` and so on: the pictures, their bytes as they were, as `000000000.jpg`, each with a
  `000000000.json` of its path, its split and, where the data set is of captions, these;
- `annotations/`: the files of annotations as they were;
- `index.safetensors`: where each picture lies, and the CRC-32 of its bytes;
- `sha256.txt`: the SHA-256 of each of these files, for `sha256sum -c` too. It is the last to be written.

Shards are read with `pread`: it needs no place in the file, which threads and forked processes would share,
and where the storage fails it says so, where mapped memory would end the process.
"""

from __future__ import annotations

import io
import json
import os
import resource
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath
from typing import BinaryIO

import numpy as np

from mwa_lightning.data.files.long_work import Follow, reading_threads, unseen
from mwa_lightning.data.shards.index import Contradiction, Index, OtherVersion, member_key, shard_name, unpacked
from mwa_lightning.data.storage.stores import DamagedShard, MissingImage, PictureStore
from mwa_lightning.data.tables.table_files import TARS
from mwa_lightning.errors import DataError, counted
from mwa_lightning.system.regular_files import open_descriptor, read_file, require_file
from mwa_lightning.system.whole_files import file_sha256

ANNOTATIONS = "annotations"
INDEX = "index.safetensors"
SUMS = "sha256.txt"
_MAY_OPEN = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
OPEN_SHARDS = 128 if _MAY_OPEN == resource.RLIM_INFINITY else min(128, _MAY_OPEN // 4)  # most that a process keeps open

_THREADS = 4
_AGAIN = "copy it again from where the shards were made, or make them again with mwa-prepare shards=DIR"


class _OpenFile:
    """A file that is open as long as anybody has this."""

    def __init__(self, path: Path) -> None:
        self.number = open_descriptor(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class _OpenFiles:
    """The files that a process reads parts of, the last used ones kept open; other processes open their own."""

    def __init__(self) -> None:
        self._open = lru_cache(OPEN_SHARDS)(_OpenFile)

    def __reduce__(self) -> tuple[type[_OpenFiles], tuple[()]]:
        return _OpenFiles, ()

    def read(self, path: Path, *, offset: int, size: int) -> bytes:
        """Part of a file; less where it ends before. Raises OSError if it cannot be read."""
        file = self._open(path)  # held, so that it stays open if another thread needs the room
        content = os.pread(file.number, size, offset)
        while len(content) < size and (more := os.pread(file.number, size - len(content), offset + len(content))):
            content += more
        return content


@dataclass(frozen=True, eq=False)
class Shards(PictureStore):
    """Reads pictures from shards by the paths in the annotations, and compares the checksum of each.

    Args:
        root: The folder of the shards.
        index: Where the pictures lie.
        sums: The SHA-256 of each file, by its name from `root` on.
    """

    root: Path
    index: Index
    sums: Mapping[str, str]
    _files: _OpenFiles = field(default_factory=_OpenFiles, repr=False)

    @property
    def folder(self) -> Path:
        return self.root

    @property
    def prefix(self) -> PurePath:
        """Nothing: paths are as in the annotations."""
        return PurePath()

    @property
    def files(self) -> Sequence[Path]:
        """The index and the checksums."""
        return (self.root / INDEX, self.root / SUMS)

    @property
    def annotations(self) -> list[str]:
        """The files of annotations, by their names from `root` on."""
        return [name for name in self.sums if name.startswith(f"{ANNOTATIONS}/")]

    def require_sums(self, names: Iterable[str]) -> None:
        """Raise DataError unless there is a checksum of each file, by its name from `root` on."""
        for name in names:
            if name not in self.sums:
                raise DataError(f"{self.root / SUMS} has no checksum of {name}, which it should: {_AGAIN}")

    def open(self, path: str) -> BinaryIO:
        """The bytes of a picture.

        Raises:
            DamagedShard: They are not those that were stored.
            MissingImage: It was not stored.
        """
        member = self.index.member(path)
        if member is None:
            raise MissingImage(f"image {path} is not in the shards at {self.root}: make them again")
        place = self.index.place(member)
        shard = self._shard(place.shard)
        where = f"at {member_key(member)}, image {path}"
        try:
            content = self._files.read(shard, offset=place.offset, size=place.size)
        except FileNotFoundError:
            raise DamagedShard(f"{shard} is missing: {_AGAIN}") from None
        except OSError as error:
            raise DamagedShard(f"{shard} cannot be read {where} ({error.strerror}): {_AGAIN}") from error
        if len(content) < place.size:
            raise DamagedShard(f"{shard} is cut short {where}: {_AGAIN}")
        if zlib.crc32(content) != place.checksum:
            raise DamagedShard(f"{shard} is damaged {where} (another CRC-32 than when it was made): {_AGAIN}")
        return io.BytesIO(content)

    def size(self, path: str) -> int | None:
        """Number of bytes of a picture; None if it was not stored."""
        member = self.index.member(path)
        return None if member is None else self.index.place(member).size

    def paths(self) -> Iterator[str]:
        return iter(self.index.paths)

    def describe(self, path: str) -> str:
        """A picture's path, and where it lies."""
        member = self.index.member(path)
        if member is None:
            return path
        return f"{path} ({member_key(member)} in {self._shard(self.index.place(member).shard)})"

    def damage(self, *, thorough: bool, follow: Follow = unseen) -> Iterator[str]:
        """The shards that are missing, of another size, or where `thorough`, of another SHA-256."""
        numbers = range(len(self.index.shard_sizes))
        if not thorough:
            yield from filter(None, map(self._size_problem, numbers))
            return
        with reading_threads(_THREADS) as pool, follow("comparing shards", len(numbers)) as advance:
            for problem in pool.map(self._problem, numbers):
                advance()
                if problem:
                    yield problem

    def _shard(self, number: int) -> Path:
        return self.root / shard_name(number)

    def _size_problem(self, number: int) -> str:
        shard, wanted = self._shard(number), int(self.index.shard_sizes[number])
        holds = f"it holds {counted(int((self.index.shards == number).sum()), 'image')}"
        try:
            require_file(shard)
            size = shard.stat().st_size
        except FileNotFoundError:
            return f"{shard} is missing, {holds}: {_AGAIN}"
        except OSError as error:
            return f"{shard} cannot be read ({error.strerror}), {holds}: {_AGAIN}"
        if size != wanted:
            what = "is cut short" if size < wanted else "is too long"
            return f"{shard} {what} ({size:,} bytes where {wanted:,} were written), {holds}: {_AGAIN}"
        return ""

    def _problem(self, number: int) -> str:
        if problem := self._size_problem(number):
            return problem
        if problem := _sum_problem(self._shard(number), self.sums.get(shard_name(number), "")):
            return problem
        members = map(int, np.flatnonzero(self.index.shards == number))
        wrong = [member_key(member) for member in members if not self._is_member(member)]
        if not wrong:
            return ""
        other = f"does not hold what {INDEX} says of {counted(len(wrong), 'image')}, {wrong[0]} the first"
        return f"{self._shard(number)} {other}: {_AGAIN}"

    def _is_member(self, member: int) -> bool:
        """Whether a shard has a file of this name, size and sum where it should, and the JSON of one of its paths."""
        place = self.index.place(member)
        path = self._shard(place.shard)

        def header(offset: int) -> tarfile.TarInfo:
            block = self._files.read(path, offset=offset - tarfile.BLOCKSIZE, size=tarfile.BLOCKSIZE)
            return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")

        try:
            image = header(place.offset)
            after = place.offset + -(-place.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE + tarfile.BLOCKSIZE
            about = header(after)
            if about.size > self.index.shard_sizes[place.shard]:
                return False
            says = json.loads(self._files.read(path, offset=after, size=about.size))
            name = PurePath(image.name).stem
            content = self._files.read(path, offset=place.offset, size=place.size)
            if zlib.crc32(content) != place.checksum:
                return False
            fits = (name, image.size, about.name) == (member_key(member), place.size, f"{member_key(member)}.json")
            return fits and image.isreg() and about.isreg() and self.index.member(says["path"]) == member
        except (OSError, tarfile.HeaderError, ValueError, KeyError, TypeError, RecursionError):
            return False


def open_shards(folder: Path) -> Shards:
    """The shards in a folder; the index and the annotations are compared with their checksums, the shards are not.

    Raises:
        DataError: There are none, they are of another version, or the index or the annotations are damaged.
    """
    if not folder.is_dir():
        raise DataError(f"data.shards={folder}: there is no such folder; mwa-prepare data=... shards=DIR makes it")
    sums = read_sums(folder)
    if INDEX not in sums:
        if any(folder.glob("[0-9]*.tar")):
            raise DataError(f"data.shards={folder} holds {TARS}")
        lacks = f"its {SUMS} names no {INDEX}" if sums else f"it has no list of files, {SUMS}"
        raise DataError(
            f"data.shards={folder} holds no shards of a data set, or not all of them ({lacks}): give the folder that "
            "mwa-prepare shards=DIR made"
        )
    shards = Shards(folder, _read_index(folder / INDEX, sums[INDEX]), sums)
    shards.require_sums(map(shard_name, range(len(shards.index.shard_sizes))))
    shards.require_sums(shards.annotations or [ANNOTATIONS])
    for name in shards.annotations:
        if problem := _sum_problem(folder / name, sums[name]):
            raise DataError(problem)
    return shards


def read_sums(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file by its name, as `sha256sum` writes them; empty where there is no list."""
    try:
        lines = os.fsdecode(read_file(folder / SUMS)).split("\n")  # names may have other ends of lines
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{folder / SUMS} cannot be read ({error.strerror}): {_AGAIN}") from error
    sums = {line[66:]: line[:64] for line in lines if len(line) > 66}
    for name in sums:
        if PurePath(name).is_absolute() or ".." in PurePath(name).parts:
            raise DataError(f"{folder / SUMS} names a file outside of its folder, {name}: {_AGAIN}")
    return sums


def _sum_problem(path: Path, wanted: str) -> str:
    """What is wrong with a file that should have a SHA-256; empty where nothing is."""
    try:
        if file_sha256(path) == wanted:
            return ""
    except FileNotFoundError:
        return f"{path} is missing: {_AGAIN}"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror}): {_AGAIN}"
    return f"{path} is damaged (its SHA-256 is not the one in {SUMS}): {_AGAIN}"


def _read_index(path: Path, wanted: str) -> Index:
    if problem := _sum_problem(path, wanted):
        raise DataError(problem)
    try:
        return unpacked(read_file(path))
    except OtherVersion as error:
        raise DataError(f"{path} {error}: make the shards again with mwa-prepare shards=DIR") from None
    except Contradiction as error:
        raise DataError(f"{path} does not fit itself or its shards ({error}): {_AGAIN}") from None
    except ValueError:
        raise DataError(f"{path} is no index of shards: give the folder that mwa-prepare shards=DIR made") from None
