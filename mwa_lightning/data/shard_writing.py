"""Turns a data set into shards: all of them are there, or none, with the same bytes every time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from mwa_lightning.data.files.appearing import Files, NotEmpty, appearing
from mwa_lightning.data.files.long_work import Follow, reading_threads, unseen
from mwa_lightning.data.files.problems import Problems
from mwa_lightning.data.images.reader import require_picture
from mwa_lightning.data.samples.records import RetrievalSplit, Strings
from mwa_lightning.data.samples.statements import StatementSplit
from mwa_lightning.data.shards.index import Index, member_key, shard_name
from mwa_lightning.data.shards.store import ANNOTATIONS, INDEX, SUMS, open_shards, read_sums
from mwa_lightning.data.sources import Source
from mwa_lightning.data.storage.stores import PictureStore
from mwa_lightning.data.tables.table_files import require_names
from mwa_lightning.errors import DataError
from mwa_lightning.system.file_locks import LOCK, Taken, is_taken, others_in
from mwa_lightning.system.regular_files import read_file
from mwa_lightning.system.whole_files import file_sha256

_THREADS = 16  # reading many small files is waiting, most of all on a network
_PICTURES_AT_ONCE = 64


class Written(NamedTuple):
    """What a folder of shards holds: paths of images, different images, shards, bytes of all files."""

    paths: int
    images: int
    shards: int
    bytes: int
    new: bool


class _Image(NamedTuple):
    """An image to store: its path in the store, that in the annotations, and what its JSON says."""

    path: str
    name: str
    about: dict[str, Any]


def write_shards(
    source: Source,
    folder: Path,
    *,
    shard_bytes: int,
    outside: bool = False,
    problems: Problems | None = None,
    follow: Follow = unseen,
) -> Written:
    """Write a data set as shards into a folder, unless it holds those already.

    Images with the same bytes are stored once. The files get their names when all are there, the list of them last;
    what an earlier call left behind when it was killed is cleared away first.

    Args:
        source: The data set; every image that its annotations name has to be there and to be one, whether it decodes or
            not.
        folder: Where to; new or empty.
        shard_bytes: Size of a shard, which a single larger image exceeds.
        outside: Take images too that lie outside of the data set's folder: shards are made to be passed on, and
            annotations from elsewhere may name any file here.
        problems: Where what is wrong with the annotations is reported; None = the first thing is raised.
        follow: Is shown how far it is.

    Raises:
        DataError: The annotations are damaged, images are missing, elsewhere or no images, the folder holds something
            else or cannot be written, or another process is writing it.
    """
    require_names(source.tables)
    splits: Mapping[str, RetrievalSplit | StatementSplit] = source.read(problems or source.problems())
    images = list(_images(splits.values()))
    with reading_threads(_THREADS) as pool, _writing(folder), _one_at_a_time(folder):
        folder = Path(os.path.realpath(folder))  # the end of a link, which stays
        if not _is_free(folder):
            if is_taken(folder / LOCK):  # by one that may be giving the files their names
                raise Taken
            return _already_there(images, source, folder, pool, shard_bytes=shard_bytes, follow=follow)
        with appearing(folder) as files:
            _require_all(images, source.store, pool, outside=outside, follow=follow)
            index = _write_pictures(images, source, files, pool, shard_bytes=shard_bytes, follow=follow)
            files.write(INDEX, index.packed())
            for name, file in _annotation_files(source).items():
                files.write(name, read_file(file))
            files.write(SUMS, _sums(files, follow=follow))
    return _written(folder, index, new=True)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns what the disk says into a DataError that names the folder."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"shards={folder} cannot be written ({error.strerror or error}): make room or choose another folder, "
            "and start again"
        ) from error


def _is_free(folder: Path) -> bool:
    """Whether there is no folder, or one with nothing but what a killed start has left; DataError for a file."""
    if folder.exists() and not folder.is_dir():
        raise DataError(f"shards={folder} is a file: give a new folder")
    return not others_in(folder)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Turns what another process does there into a DataError."""
    try:
        yield
    except Taken:
        raise DataError(f"shards={folder} is being written by another process: wait for it") from None
    except NotEmpty:
        raise DataError(
            f"shards={folder} has just been filled by another process: start the same command again to compare it"
        ) from None


def _images(splits: Iterable[RetrievalSplit | StatementSplit]) -> Iterator[_Image]:
    """The images of all splits in file order, each path once."""
    seen: set[str] = set()
    for split in splits:
        captions = _captions(split) if isinstance(split, RetrievalSplit) else None
        for place, picture in enumerate(split.pictures):
            name = str(PurePath(split.pictures.paths[place]))
            if name not in seen:
                seen.add(name)
                about: dict[str, Any] = {"path": name, "split": split.name}
                if captions is not None:
                    about["captions"] = captions[place]
                yield _Image(picture.path, name, about)


def _captions(split: RetrievalSplit) -> list[list[str]]:
    """The captions of each image."""
    captions: list[list[str]] = [[] for _ in split.pictures.image_ids]
    for text, image in zip(split.captions.texts, split.captions.image_index, strict=True):
        captions[image].append(text)
    return captions


def _require_all(
    images: Sequence[_Image], store: PictureStore, pool: ThreadPoolExecutor, *, outside: bool, follow: Follow
) -> None:
    """Raise DataError unless all images are there, and in the folder of the data set, or may lie `outside` of it."""

    def look(image: _Image) -> tuple[bool, bool]:
        there = store.size(image.path) is not None
        return there, there and not outside and store.lies_outside(image.path)

    missing, elsewhere = [], []
    with follow("looking for images", len(images)) as advance:
        for image, (there, lies_outside) in zip(images, pool.map(look, images), strict=True):
            if not there:
                missing.append(image.path)
            elif lies_outside:
                elsewhere.append(image.path)
            advance()
    if missing:
        why = ""
        try:
            store.open(missing[0]).close()
        except OSError as error:
            why = f"{error.strerror}; "
        raise DataError(
            f"images are missing, {len(missing):,} of {len(images):,}, {missing[0]} the first ({why}mwa-prepare "
            "check=true lists all): put them there, or leave them out of the annotations"
        )
    if elsewhere:
        raise DataError(
            f"images lie outside of {store.folder}, {len(elsewhere):,} of {len(images):,}, {elsewhere[0]} the first "
            "(links count where they lead): shards are often passed on, so look whether these may be; "
            "shards_outside=true takes them"
        )


def _write_pictures(
    images: Sequence[_Image],
    source: Source,
    files: Files,
    pool: ThreadPoolExecutor,
    *,
    shard_bytes: int,
    follow: Follow,
) -> Index:
    member_of: dict[bytes, int] = {}
    members: dict[str, int] = {}
    places: list[tuple[int, int, int, int]] = []
    with _Tars(files, shard_bytes=shard_bytes) as tars, follow("writing images", len(images)) as advance:
        for image, content in _contents(images, source.store, pool):
            digest = hashlib.sha256(content).digest()
            member = members[image.name] = member_of.setdefault(digest, len(member_of))
            if member == len(places):
                shard, offset = tars.add(member_key(member), image, content)
                places.append((shard, offset, len(content), zlib.crc32(content)))
            advance()
    columns = np.array(places, dtype=np.int64).T.copy()
    paths = sorted(members)
    return Index(
        layout=source.layout,
        shard_bytes=shard_bytes,
        paths=Strings(paths),
        members=np.array([members[path] for path in paths], dtype=np.int64),
        shards=columns[0],
        offsets=columns[1],
        sizes=columns[2],
        checksums=columns[3],
        shard_sizes=np.array(tars.sizes, dtype=np.int64),
    )


def _contents(
    images: Sequence[_Image], store: PictureStore, pool: ThreadPoolExecutor
) -> Iterator[tuple[_Image, bytes]]:
    """The images with their bytes, in order."""

    def read(image: _Image) -> bytes:
        try:
            with store.open(image.path) as file:
                require_picture(file, f"image {image.path}")
                return file.read()
        except OSError as error:
            raise DataError(f"image {image.path} cannot be read ({error.strerror}): mend that") from error

    for start in range(0, len(images), _PICTURES_AT_ONCE):
        some = images[start : start + _PICTURES_AT_ONCE]
        yield from zip(some, pool.map(read, some), strict=True)


class _Tars:
    """Writes members into one tar file after the other.

    Args:
        files: What they become part of.
        shard_bytes: From what size on another one is begun.
    """

    def __init__(self, files: Files, *, shard_bytes: int) -> None:
        self.sizes: list[int] = []
        self._files = files
        self._shard_bytes = shard_bytes
        self._file: BinaryIO | None = None
        self._tar: tarfile.TarFile | None = None

    def __enter__(self) -> _Tars:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: object) -> None:
        if kind is None:
            self._close()
        elif self._file is not None:
            with suppress(OSError):  # of a full disk: there is an error already
                self._file.close()

    def add(self, key: str, image: _Image, content: bytes) -> tuple[int, int]:
        """Write an image and its JSON; the number of the shard, and the image's first byte in it."""
        about = json.dumps(image.about, ensure_ascii=False).encode("utf-8", "replace")
        needed = sum(
            tarfile.BLOCKSIZE + -(-len(part) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE for part in (content, about)
        )
        if self._file is not None and self._file.tell() + needed > self._shard_bytes:
            self._close()
        if self._file is None:
            self._file = self._files.open(shard_name(len(self.sizes)))
            self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        offset = self._file.tell() + tarfile.BLOCKSIZE
        self._add(f"{key}.{_suffix(image.name)}", content)
        self._add(f"{key}.json", about)
        return len(self.sizes), offset

    def _add(self, name: str, content: bytes) -> None:
        assert self._tar is not None
        member = tarfile.TarInfo(name)  # of time, user and group 0
        member.size = len(content)
        self._tar.addfile(member, io.BytesIO(content))

    def _close(self) -> None:
        if self._file is None or self._tar is None:
            return
        with self._file:
            self._tar.close()
            self._file.flush()
            os.fsync(self._file.fileno())
            self.sizes.append(self._file.tell())
        self._file = self._tar = None


def _suffix(name: str) -> str:
    """The format that a file's name promises, as WebDataset has it: `jpg` of `A.JPG`."""
    suffix = PurePath(name).suffix[1:].lower()
    return suffix if suffix.isascii() and suffix.isalnum() and suffix != "json" else "img"


def _annotation_files(source: Source) -> dict[str, Path]:
    """The files of annotations by their names in the shards."""
    if source.annotations.is_dir():
        names = {file.relative_to(source.annotations).as_posix(): file for file in source.files()}
    else:
        names = {file.name: file for file in source.files()}
    return {f"{ANNOTATIONS}/{name}": file for name, file in names.items()}


def _sums(files: Files, *, follow: Follow) -> bytes:
    """All files with their SHA-256, as `sha256sum` lists them."""
    lines = []
    with follow("checksums of files", len(files.written)) as advance:
        for name in sorted(files.written):
            lines.append(f"{file_sha256(files.written[name])}  {name}\n")
            advance()
    return os.fsencode("".join(lines))


def _already_there(
    images: Sequence[_Image],
    source: Source,
    folder: Path,
    pool: ThreadPoolExecutor,
    *,
    shard_bytes: int,
    follow: Follow,
) -> Written:
    """What a folder holds that need not be written; DataError if it is not what would be."""
    taken = is_taken(folder / LOCK)
    if INDEX not in read_sums(folder):
        if taken:
            raise Taken
        raise DataError(f"shards={folder} holds other files than shards, or only some of them: give a new folder")
    anew = f"to make them again, remove {folder} first"
    try:
        shards = open_shards(folder)
        for problem in shards.damage(thorough=False):
            raise DataError(problem)
    except DataError as error:
        raise DataError(f"{error}; {anew}") from error
    annotations = {name: file_sha256(file) for name, file in _annotation_files(source).items()}
    held = {name: shards.sums[name] for name in shards.annotations}
    if (shards.index.layout, shards.index.shard_bytes, held) != (source.layout, shard_bytes, annotations):
        raise DataError(
            f"shards={folder} holds shards of another data set, of other annotations or of another size: remove it, or "
            "give a new folder"
        )
    sizes = pool.map(source.store.size, (image.path for image in images))
    with follow("comparing images", len(images)) as advance:
        for image, size in zip(images, sizes, strict=True):
            if size not in (None, shards.size(image.name)):  # pictures may have gone since
                raise DataError(f"shards={folder} holds another {image.name} than {image.path} is now: {anew}")
            advance()
    return _written(folder, shards.index, new=False)


def _written(folder: Path, index: Index, *, new: bool) -> Written:
    sizes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Written(len(index.paths), len(index.sizes), len(index.shard_sizes), sizes, new)
